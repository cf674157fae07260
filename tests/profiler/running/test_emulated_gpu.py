"""The emulated GPU, and the options of PyTorch's CUDA allocator on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from profiler.devices.table import CPU, lookup
from profiler.errors import DeviceError, UsageError
from profiler.prediction.allocator_steps import BLOCK_BYTES
from profiler.running.emulated import libraries
from profiler.running.emulated.gpu import emulated_environment

ROOT = Path(__file__).parents[3]

PROBE = """
import json, os, sys, torch
from profiler.models.methods import get_method
from profiler.running.memory_caps import use_planned_configuration

def expandable():
    torch.empty(1 << 21, device="cuda")
    return torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"]

get_method("lora")  # imports peft, which imports bitsandbytes
seen = {"bitsandbytes": "bitsandbytes" in sys.modules, "after import": torch.cuda.is_initialized()}
seen["expandable"] = expandable()
torch.cuda.memory._set_allocator_settings("expandable_segments:False")
seen["changed"] = expandable()
use_planned_configuration()
seen["again"] = expandable()
found = torch.cuda.get_device_properties(0)
seen["capability"] = [found.major, found.minor]
seen["singular values"] = list(torch.linalg.svd(torch.ones(4, 2, device="cuda"))[1].shape)
squares = [torch.ones(shape, device="cuda") for shape in ((4, 4), (3, 4, 4), (600, 600))]
seen["eigenvalues"] = [list(torch.linalg.eigh(square)[0].shape) for square in squares]
biases = torch.ones(400, 8, device="cuda", requires_grad=True)
biases[:, torch.zeros(5000, dtype=torch.long, device="cuda")].sum().backward()  # CUB sorts
seen["gradient"] = list(biases.grad.shape)
sys.stdout.write(json.dumps(seen))
sys.stdout.flush()
os._exit(0)
"""


def test_a_late_import_cannot_undo_the_allocators_options_and_initialises_nothing() -> None:
    reason = libraries.why_not_emulated()
    if reason:
        pytest.skip(reason)
    given = {k: v for k, v in os.environ.items() if not k.endswith("_ALLOC_CONF")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE],
        env=given | emulated_environment(lookup("rtx-4060")),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "bitsandbytes": True,
        "after import": False,
        "expandable": True,
        "changed": False,
        "again": True,
        "capability": [8, 9],
        "singular values": [2],
        "eigenvalues": [[4], [3, 4], [600]],
        "gradient": [400, 8],
    }


WORKSPACE = """
import os, sys, torch
from profiler.devices.table import lookup, workspaces_of

matrix = torch.ones(64, 64, device="cuda")
torch.cuda.reset_peak_memory_stats()
before = torch.cuda.memory_allocated()
product = matrix @ matrix
taken = torch.cuda.max_memory_allocated() - before - product.nbytes
before = torch.cuda.memory_allocated()
with_bias = torch.nn.functional.linear(matrix, matrix, matrix[0])
own = torch.cuda.memory_allocated() - before - with_bias.nbytes
predicted = workspaces_of(lookup("rtx-3060"))
sys.stdout.write(f"{taken} {predicted[0]} {own} {sum(predicted[2:3])}")
sys.stdout.flush()
os._exit(0)
"""


SHARED, OWN = ({"TORCH_CUBLASLT_UNIFIED_WORKSPACE": flag} for flag in ("1", "0"))


@pytest.mark.parametrize(
    "chosen",
    [
        *({"CUBLAS_WORKSPACE_CONFIG": c} for c in ("", ":4096:8", ":16:8:4096:1", ":0:0", "x")),
        SHARED | {"CUBLASLT_WORKSPACE_SIZE": "4096"},
        {"CUBLASLT_WORKSPACE_SIZE": "40960"},
        *(OWN | {"CUBLASLT_WORKSPACE_SIZE": size} for size in ("", "4096", "40960", "0", " 12x")),
        {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "false"},
    ],
    ids=str,
)
def test_a_workspace_has_the_size_that_the_environment_says(chosen: dict[str, str]) -> None:
    reason = libraries.why_not_emulated()
    if reason:
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKSPACE],
        env=os.environ | emulated_environment(lookup("rtx-3060")) | chosen,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    taken, predicted, own, predicted_own = map(int, done.stdout.split())
    assert taken == predicted
    assert own == -(-predicted_own // BLOCK_BYTES) * BLOCK_BYTES


def test_every_command_sets_the_options_before_it_imports_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from click.testing import CliRunner

    from planner.cli import cli

    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert CliRunner().invoke(cli, ["devices", "--json"]).exit_code == 0
    assert os.environ.pop("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="only a GPU can be emulated"):
        emulated_environment(CPU)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "gcc" else "/usr/bin/nm")
    assert "gcc, which is not installed" in libraries.why_not_emulated()
    libraries.emulated_libraries.cache_clear()
    with pytest.raises(DeviceError, match="gcc"):
        libraries.emulated_libraries()


def test_every_query_of_a_workspace_in_single_precision_has_an_answer() -> None:
    """A stub that is made for any other function leaves the size as it was: a random number."""
    reason = libraries.why_not_emulated()
    if reason:
        pytest.skip(reason)
    asked = set()
    for library in libraries._Installation.find().libraries:
        symbols = libraries._run("nm", "-D", "--undefined-only", str(library))
        asked |= set(re.findall(r"cusolverDn[SX]\w+_bufferSize", symbols))
    assert len(asked) > 10
    (path, *_) = libraries.emulated_libraries()
    defined = libraries._run("nm", "-D", "--defined-only", str(path))
    strong = set(re.findall(r"T (cusolverDn\w+)", defined))
    assert asked <= strong
