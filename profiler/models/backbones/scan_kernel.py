"""The selective scan's chunk loops as one compiled C file, for float32 on a CPU.

The system's C compiler makes `scan_kernel.c` into a library the first time a scan really runs
(about two seconds); it is kept under `$BUDGETPLAN_CACHE/kernels`, else
`~/.cache/budgetplan/kernels`, by a hash of the source, the command, the compiler and the processor.
Whatever goes wrong (no compiler, another platform, an unwritable folder) is a reason why the
PyTorch loops of selective_scan.py run instead: it is logged, and `measure` reports it. `CC` names
another compiler; `CC=false` turns the kernel off.

The library is linked without an OpenMP runtime, so that it finds the one PyTorch has loaded: one
pool of threads, of the size that `torch.set_num_threads` gives.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC")
SECONDS_TO_COMPILE = 60
ALIGNMENT_BYTES = 64
"""Of the scratch; PyTorch's CPU allocator gives as much."""

_log = logging.getLogger(__name__)


class ScanKernel:
    """The two functions of the library.

    Args:
        path: the compiled library.

    Raises:
        OSError: it cannot be loaded here.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._takes, self._scratch = library.scan_takes, library.scan_scratch
        self._forward, self._backward = library.scan_forward, library.scan_backward
        self._scratch.restype = ctypes.c_int64
        self._forward.restype = self._backward.restype = None

    def sizes(
        self, u: Tensor, b: Tensor, workspace: Tensor, *, chunk: int, softplus: bool, backward: bool
    ) -> _Sizes | None:
        """Return what a run is described by, or None for a scan this kernel does not take.

        Args:
            u: inputs [batch, length, inner].
            b: input weights [batch, length, states, groups].
            workspace: the scratch; each thread takes a part of it.
            chunk: positions of a chunk.
            softplus: whether softplus makes the step sizes.
            backward: which of the two functions is meant.
        """
        if u.device.type != "cpu" or u.dtype != torch.float32 or not u.numel():
            return None
        sizes = _Sizes(*u.shape, *b.shape[2:], chunk, int(softplus), 1, 0)
        sizes.scratch = self._scratch(ctypes.byref(sizes), int(backward))
        room = workspace.numel() // max(1, sizes.scratch)
        sizes.threads = min(torch.get_num_threads(), room, u.shape[0] * b.shape[3])
        aligned = workspace.data_ptr() % ALIGNMENT_BYTES == 0
        fits = aligned and sizes.threads > 0 and self._takes(ctypes.byref(sizes))
        return sizes if fits else None

    def forward(self, sizes: _Sizes, *tensors: Tensor | None) -> None:
        """Run it on contiguous tensors, in the order of the C function."""
        self._forward(ctypes.byref(sizes), *map(_pointer, tensors))

    def backward(self, sizes: _Sizes, *tensors: Tensor | None) -> None:
        """Run it on contiguous tensors, in the order of the C function."""
        self._backward(ctypes.byref(sizes), *map(_pointer, tensors))


class _Sizes(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "inner", "states", "groups")),
        *((name, ctypes.c_int64) for name in ("chunk", "softplus", "threads", "scratch")),
    )


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    assert x is None or x.is_contiguous()
    return ctypes.c_void_p(x.data_ptr() if x is not None and x.numel() else None)


def scan_kernel() -> ScanKernel | None:
    """Return the kernel, compiled and loaded at the first call, or None where there is none."""
    return _kernel_or_reason()[0]


def describe_kernel() -> str:
    """Say in words which loops run on this CPU; compiles nothing that no scan asked for."""
    if not _kernel_or_reason.cache_info().currsize:
        return "not used"
    kernel, reason = _kernel_or_reason()
    return "compiled" if kernel else f"PyTorch ({reason})"


@cache
def _kernel_or_reason() -> tuple[ScanKernel | None, str]:
    try:
        return ScanKernel(_compiled()), ""
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[:200]
        _log.info("the selective scan runs without its compiled kernel: %s", reason)
        return None, reason


def _compiled() -> Path:
    """Return the library's path; compile it if the folder does not have it."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise OSError("no C compiler (cc, or what CC names)")
    target = kernel_folder() / f"scan_kernel-{_key(Path(compiler))}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "kernel.so"
            _run_compiler(
                compiler, *FLAGS, "-c", str(SOURCE), "-o", f"{folder}/kernel.o", cwd=folder
            )
            _run_compiler(compiler, "-shared", f"{folder}/kernel.o", "-o", str(made), cwd=folder)
            os.replace(made, target)
    return target


def kernel_folder() -> Path:
    """Where compiled libraries are kept."""
    given = os.environ.get("BUDGETPLAN_CACHE")
    return (Path(given) if given else Path.home() / ".cache" / "budgetplan") / "kernels"


def _key(compiler: Path) -> str:
    """A hash of all that the library depends on."""
    made_by, source = compiler.resolve(), SOURCE.read_bytes()
    known = (FLAGS, str(made_by), made_by.stat().st_mtime_ns, torch.__version__, _processor())
    return hashlib.sha256(source + repr(known).encode()).hexdigest()[:24]


def _processor() -> list[str]:
    """The machine, and on Linux what the first core says of itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if info.is_file() else []
    named = ("model name", "flags", "Features", "CPU part")
    return [platform.machine(), *(line for line in lines if line.startswith(named))]


def _run_compiler(*command: str, cwd: str) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS_TO_COMPILE,
        check=False,
        env={**os.environ, "TMPDIR": cwd},
    )
    if done.returncode:
        raise OSError(f"{command[0]} failed with {done.returncode}: {done.stderr.strip()}")
