"""Settings of a process that trains on a GPU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from profiler.running import memory_caps

python_native: Any = pytest.importorskip("torch.backends.python_native")


def test_available_memory_is_that_of_the_machine_or_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(memory_caps, "_CGROUP", tmp_path / "none")
    assert 0 < memory_caps.available_host_bytes() < installed
    monkeypatch.setattr(memory_caps, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("6000000\n")
    for limit, left in (("7000000\n", 1_000_000), ("5000000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory_caps.available_host_bytes() == left
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_caps.available_host_bytes() > 7_000_000


def test_without_a_c_compiler_no_kernel_is_compiled_while_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "bmm" in " ".join(python_native.get_dsl_operations("triton"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    assert memory_caps.has_c_compiler()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not memory_caps.has_c_compiler()
    with python_native.triton.disabled():
        python_native.triton.enabled = True
        memory_caps.avoid_compiled_kernels()
        assert not python_native.triton.enabled
    python_native.triton.enabled = True
