"""The compiled chunk loops against the recurrence, the PyTorch loops, and a machine without cc."""

import shutil
import subprocess
import sys

import pytest
import torch

from profiler.device_rules.cpu_allocator import memory_events, peak_and_growth
from profiler.models.backbones import scan_kernel, scan_operators
from profiler.models.backbones.selective_scan import selective_scan
from tests.profiler.models.backbones.test_selective_scan import (
    NAMES,
    gradients,
    random_inputs,
    token_by_token,
)

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

SHAPES = (
    {"batch": 2, "inner": 64, "states": 16, "length": 197, "groups": 2},
    {"batch": 3, "inner": 42, "states": 5, "length": 50, "groups": 2},  # 21 channels: 16 and 5
    {"batch": 1, "inner": 3, "states": 16, "length": 1},
    {"batch": 5, "inner": 40, "states": 33, "length": 23, "groups": 1},
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A cache of its own, and no kernel remembered; afterwards as before."""
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    scan_kernel._kernel_or_reason.cache_clear()
    yield
    scan_kernel._kernel_or_reason.cache_clear()


@pytest.fixture
def loops_only(monkeypatch):
    monkeypatch.setattr(scan_operators, "scan_kernel", lambda: None)


def errors(got, expected) -> list[float]:
    (y, grads), (y_exact, grads_exact) = got, expected
    pairs = [(y, y_exact), *((grads[name], grads_exact[name]) for name in NAMES)]
    return [((a.double() - b).norm() / b.norm().clamp_min(1e-9)).item() for a, b in pairs]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_output_and_every_gradient_equal_float64(shape, threads):
    assert scan_kernel.scan_kernel() is not None
    exact = random_inputs(**shape)
    single = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = gradients(selective_scan, single)
    finally:
        torch.set_num_threads(before)
    assert max(errors(got, gradients(token_by_token, exact))) < 2e-6
    assert scan_kernel.describe_kernel() == "compiled"


@needs_compiler
def test_the_kernel_and_the_loops_agree_and_take_the_same_memory(monkeypatch):
    inputs = random_inputs(**SHAPES[0], dtype=torch.float32)
    ran = []
    for used in (scan_kernel.scan_kernel(), None):
        monkeypatch.setattr(scan_operators, "scan_kernel", lambda used=used: used)
        results = gradients(selective_scan, inputs)
        events = memory_events(lambda: gradients(selective_scan, inputs))
        ran.append((results, peak_and_growth(events)))
    (kernel, kernel_bytes), (loops, loops_bytes) = ran
    doubled = (loops[0].double(), {name: x.double() for name, x in loops[1].items()})
    assert max(errors(kernel, doubled)) < 2e-6
    # PyTorch wraps a Python number as a tensor
    assert kernel_bytes[1] == loops_bytes[1]
    assert 0 <= loops_bytes[0] - kernel_bytes[0] <= 16


@needs_compiler
@pytest.mark.parametrize("softplus", [False, True])
def test_extreme_steps_and_not_a_number_act_as_in_the_loops(monkeypatch, softplus):
    x = random_inputs(batch=1, inner=16, states=16, length=40, dtype=torch.float32)
    extreme = torch.linspace(-120, 120, 40) if softplus else torch.linspace(0, 1e6, 40)
    delta = extreme.expand(1, 16, 40)

    def run(u):
        return selective_scan(u, delta, x["A"], x["B"], x["C"], delta_softplus=softplus)

    with torch.no_grad():
        broken = x["u"].clone()
        broken[0, 3, 20] = torch.nan
        kernel = (run(x["u"]), run(broken))
        monkeypatch.setattr(scan_operators, "scan_kernel", lambda: None)
        loops = (run(x["u"]), run(broken))
    torch.testing.assert_close(kernel[0], loops[0], rtol=2e-5, atol=1e-5)
    assert torch.equal(kernel[1].isnan(), loops[1].isnan())
    assert loops[1].isnan().any()


@needs_compiler
def test_a_frozen_input_gets_no_gradient():
    inputs = random_inputs(inner=32, dtype=torch.float32)
    _, full = gradients(selective_scan, inputs)
    for trained in NAMES:
        partly = {name: x.detach().requires_grad_(name == trained) for name, x in inputs.items()}
        _, grads = gradients(selective_scan, partly)
        assert set(grads) == {trained}
        torch.testing.assert_close(grads[trained], full[trained], rtol=1e-5, atol=1e-5)


def test_the_loops_alone_are_right_in_float32(loops_only):
    exact = random_inputs(**SHAPES[0])
    single = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    got = gradients(selective_scan, single)
    assert max(errors(got, gradients(token_by_token, exact))) < 2e-6


@pytest.mark.parametrize("compiler", ["false", "there-is-no-such-compiler"])
def test_without_a_compiler_the_loops_run_and_the_reason_is_told(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CC", compiler)
    assert scan_kernel.describe_kernel() == "not used"
    inputs = random_inputs(inner=16, dtype=torch.float32)
    y, _ = gradients(selective_scan, inputs)
    assert torch.isfinite(y).all()
    assert scan_kernel.scan_kernel() is None
    told = scan_kernel.describe_kernel()
    assert told.startswith("PyTorch (")
    assert "compiler" in told or "failed" in told
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_a_folder_that_is_a_file_is_a_reason_not_an_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "file"))
    assert scan_kernel.scan_kernel() is None


@needs_compiler
def test_processes_that_compile_at_once_leave_one_library(tmp_path):
    code = "from profiler.models.backbones.scan_kernel import *; print(bool(scan_kernel()))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=300)[0].strip() for process in running] == ["True"] * 2
    kept = [path.name for path in (tmp_path / "kernels").iterdir()]
    assert len(kept) == 1
    assert kept[0].startswith("scan_kernel-")
