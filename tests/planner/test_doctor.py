from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli import cli
from planner.doctor import _architecture, examine, has_fault


@pytest.mark.parametrize(
    ("capability", "built_for", "state"),
    [
        ((8, 6), ["sm_80", "sm_90"], "ok"),  # kernels of 8.0 run on 8.6
        ((8, 0), ["sm_86"], "fault"),
        ((6, 1), ["sm_75", "sm_80", "compute_90"], "fault"),
        ((12, 0), ["sm_80", "compute_90"], "ok"),  # compiled at run time
        ((10, 0), ["sm_100a"], "ok"),
        ((9, 0), ["sm_80", "sm_86"], "fault"),
    ],
)
def test_a_gpu_needs_kernels_of_its_architecture(
    capability: tuple[int, int], built_for: list[str], state: str
) -> None:
    """CUDA's rule of binary compatibility (CUDA C++ programming guide, section 3.1.2)."""
    found = _architecture("a GPU", capability, built_for)
    assert found.state == state
    assert bool(found.advice) == (state == "fault")


def test_a_cache_that_cannot_be_written_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "cache"))
    findings = {finding.name: finding for finding in examine()}
    assert findings["torch"].state == "ok"
    assert findings["profile cache"].found.endswith("0 profiles, 0 B")
    assert not has_fault(tuple(findings.values()))
    (tmp_path / "cache").write_text("a file")
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    assert done.exit_code == 5
    shown = json.loads(done.stdout)
    assert not shown["works"]
    faults = [each for each in shown["findings"] if each["state"] == "fault"]
    assert [each["name"] for each in faults] == ["profile cache"]
