"""The selective scan's chunk loops as one compiled C file, for float32 on a CPU.

The system's C compiler compiles ``scan_kernel.c`` when the first scan runs on real tensors (about
two seconds). The library is stored under ``$BUDGETPLAN_CACHE/kernels``, else
``~/.cache/budgetplan/kernels``, under a hash of the source, the command, the compiler and the
processor. If that fails (no compiler, another platform, an unwritable folder), the PyTorch loops of
scan_loops.py run instead; the reason is logged, and ``measure`` reports it. The variable ``CC``
selects another compiler; ``CC=false`` turns the kernel off.

The library is linked without an OpenMP runtime, so it uses the runtime that PyTorch has loaded:
there is one pool of threads, of the size set by ``torch.set_num_threads``.
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

from profiler.store import cache_folder

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC")
SECONDS_TO_COMPILE = 60
ALIGNMENT_BYTES = 64
"""Alignment that the kernel requires of the scratch; PyTorch's CPU allocator guarantees it."""

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
        """Return the sizes to pass to a run; None for a scan that this kernel does not support.

        Args:
            u: inputs [batch, length, inner].
            b: input weights [batch, length, states, groups].
            workspace: scratch, divided among the threads.
            chunk: positions of a chunk.
            softplus: whether softplus is applied to the step sizes.
            backward: whether the backward function will run.
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
        """Run the pass on contiguous tensors, in the order of the C function's arguments."""
        self._forward(ctypes.byref(sizes), *map(_pointer, tensors))

    def backward(self, sizes: _Sizes, *tensors: Tensor | None) -> None:
        """Run the pass on contiguous tensors, in the order of the C function's arguments."""
        self._backward(ctypes.byref(sizes), *map(_pointer, tensors))


class _Sizes(ctypes.Structure):
    """``sizes`` of scan_kernel.c; ``scratch`` is the floats of scratch per thread."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "inner", "states", "groups")),
        *((name, ctypes.c_int64) for name in ("chunk", "softplus", "threads", "scratch")),
    )


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    assert x is None or x.is_contiguous()
    return ctypes.c_void_p(x.data_ptr() if x is not None and x.numel() else None)


def scan_kernel() -> ScanKernel | None:
    """Return the kernel, compiled and loaded at the first call; None if that failed."""
    return _kernel_or_reason()[0]


def describe_kernel() -> str:
    """Return in words which loops run on this CPU, without compiling them."""
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
    """Return the library's path; compile it if it is not in the folder."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise OSError("no C compiler: install cc or set CC")
    target = kernel_folder() / f"scan_kernel-{_library_hash(Path(compiler))}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "kernel.so"
            _run_compiler(
                compiler, *FLAGS, "-c", str(SOURCE), "-o", f"{folder}/kernel.o", cwd=folder
            )
            _run_compiler(compiler, "-shared", f"{folder}/kernel.o", "-o", str(made), cwd=folder)
            os.replace(made, target)  # atomic: processes that compile at once do not collide
    return target


def kernel_folder() -> Path:
    """Return the folder of compiled libraries."""
    return cache_folder("kernels")


def _library_hash(compiler: Path) -> str:
    """Return a hash of everything that the library depends on."""
    made_by, source = compiler.resolve(), SOURCE.read_bytes()
    known = (FLAGS, str(made_by), made_by.stat().st_mtime_ns, torch.__version__, _processor())
    return hashlib.sha256(source + repr(known).encode()).hexdigest()[:24]


def _processor() -> list[str]:
    """Return the machine type and, on Linux, model and features of the first core."""
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
