"""Compiles the libraries of the emulated GPU against the CUDA headers of the installed PyTorch.

gcc and nm are needed, and a CUDA build of PyTorch whose headers came with it (the ``nvidia``
packages of the wheel). The libraries are kept in the cache folder, one set for each installation.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from profiler.errors import DeviceError
from profiler.store import cache_folder

_HERE = Path(__file__).parent

_IMPORTED = re.compile(r"\bU (_*(?:cuda|cublas|cudnn|nvrtc|cusolver)[A-Za-z0-9_]*)")
"""An undefined symbol in the output of nm."""

_DRIVER_FUNCTION = re.compile(r"CUresult CUDAAPI\s+(cu[A-Za-z0-9]+)\s*\(")

_TORCH_LIBRARIES = (
    "libc10_cuda.so",
    "libtorch_cuda.so",
    "libtorch_cuda_linalg.so",
    "libtorch_python.so",
    "libcaffe2_nvrtc.so",
)

_SOURCES = ("device.c", "nvml.c", "nvrtc.c")

_SECONDS_TO_COMPILE = 120


def why_not_emulated() -> str:
    """Return the reason why no GPU can be emulated here, empty if one can.

    Nothing is compiled and PyTorch is not imported.
    """
    missing = [name for name in ("gcc", "nm") if shutil.which(name) is None]
    if missing:
        return f"an emulated GPU needs {missing[0]}, which is not installed"
    try:
        _Installation.find()
    except DeviceError as error:
        return str(error)
    return ""


@cache
def emulated_libraries() -> tuple[Path, ...]:
    """Return the libraries to preload, compiled at the first call.

    Raises:
        DeviceError: there is no compiler, PyTorch is no CUDA build, or the compiler failed.
    """
    reason = why_not_emulated()
    if reason:
        raise DeviceError(reason)
    installed = _Installation.find()
    try:
        folder = cache_folder("kernels") / f"emulated-{installed.hash()}"
        names = ("libcuda.so.1", installed.nvrtc_name, "libnvidia-ml.so.1")
        if not all((folder / name).is_file() for name in names):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as draft:
                _compile_all(installed, Path(draft))
                for name in names:  # atomic: processes that compile at once do not collide
                    os.replace(Path(draft) / name, folder / name)
    except OSError as error:
        raise DeviceError(
            f"the emulated GPU cannot be kept on disk ({error}); set BUDGETPLAN_CACHE to a folder "
            "that can be written into"
        ) from error
    return tuple(folder / name for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Installation:
    """The installed PyTorch and the headers that came with it.

    Attributes:
        libraries: PyTorch's libraries that call CUDA.
        includes: folders of headers.
        driver_header: cuda.h.
        nvrtc_name: file name of NVRTC's library, which PyTorch loads by name.
    """

    libraries: tuple[Path, ...]
    includes: tuple[Path, ...]
    driver_header: Path
    nvrtc_name: str

    @classmethod
    def find(cls) -> _Installation:
        """Return the installed PyTorch.

        Raises:
            DeviceError: PyTorch is no CUDA build, or its headers are not installed.
        """
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            raise DeviceError("an emulated GPU needs PyTorch, which is not installed")
        torch = Path(spec.origin).parent
        libraries = [torch / "lib" / name for name in _TORCH_LIBRARIES]
        if not libraries[0].is_file():
            raise DeviceError("an emulated GPU needs a CUDA build of PyTorch, got one without CUDA")
        nvidia = torch.parent / "nvidia"
        includes = sorted({header.parent for header in nvidia.glob("**/include/*.h")})
        includes.append(torch.parent / "triton" / "backends" / "nvidia" / "include")  # crt/
        headers = [path / "cuda.h" for path in includes if (path / "cuda.h").is_file()]
        nvrtc = sorted(path.name for path in nvidia.glob("**/libnvrtc.so.*"))
        if not headers or not nvrtc:
            raise DeviceError("an emulated GPU needs the CUDA headers of PyTorch's wheel")
        return cls(
            libraries=tuple(path for path in libraries if path.is_file()),
            includes=tuple(includes),
            driver_header=headers[0],
            nvrtc_name=nvrtc[0],
        )

    def hash(self) -> str:
        """Return a hash of everything that the compiled libraries depend on."""
        sources = b"".join((_HERE / name).read_bytes() for name in (*_SOURCES, "libraries.py"))
        compiler = Path(shutil.which("gcc") or "gcc").resolve()
        known = (metadata.version("torch"), str(self.libraries[0]), str(compiler))
        return hashlib.sha256(sources + repr(known).encode()).hexdigest()[:16]


def _compile_all(installed: _Installation, folder: Path) -> None:
    symbols = _run("nm", "-D", "--undefined-only", *map(str, installed.libraries))
    driver = _DRIVER_FUNCTION.findall(installed.driver_header.read_text(encoding="utf-8"))
    names = {*_IMPORTED.findall(symbols), *driver, *(f"{name}_v2" for name in driver)}
    nvrtc = {name for name in names if name.startswith("nvrtc")}
    flags = [f"-I{path}" for path in installed.includes]
    _compile(folder / "libcuda.so.1", "device.c", names - nvrtc, flags)
    # PyTorch looks symbols up in NVRTC's own library, so they need that library's version
    name = installed.nvrtc_name
    _compile(folder / name, "nvrtc.c", nvrtc, flags, version=name)
    _compile(folder / "libnvidia-ml.so.1", "nvml.c", (), flags)


def _compile(
    path: Path, source: str, names: Iterable[str], flags: list[str], *, version: str = ""
) -> None:
    """Compile a source file, and a weak stub that returns success for every name it lacks."""
    stubs, versions = path.with_suffix(".stubs.c"), path.with_suffix(".versions")
    versions.write_text(f"{version} {{ global: *; }};\n", encoding="utf-8")
    stub = "__attribute__((weak)) int {}(void) {{ return 0; }}\n"
    stubs.write_text("".join(map(stub.format, sorted(names))), encoding="utf-8")
    _run(
        *("gcc", "-shared", "-fPIC", "-O1", "-w", "-o", str(path), str(_HERE / source)),
        *(str(stubs), *flags, "-lpthread"),
        *(f"-Wl,-soname,{path.name}", f"-Wl,--version-script,{versions}"),
    )


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS_TO_COMPILE
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"the emulated GPU could not be compiled: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"the emulated GPU could not be compiled: {command[0]} says {last}")
    return done.stdout
