"""Settings of a process that trains on a GPU."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from profiler.running import memory_caps

python_native: Any = pytest.importorskip("torch.backends.python_native")


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
