"""Compile the hollow device against the installed torch's own CUDA headers (gcc and nm needed)."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
IMPORTS = re.compile(r"\bU (_*(?:cuda|cublas|cudnn|nvrtc)[A-Za-z0-9_]*)")
DRIVER = re.compile(r"CUresult CUDAAPI\s+(cu[A-Za-z0-9]+)\s*\(")
LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_python.so", "libcaffe2_nvrtc.so")


def build(folder: Path) -> list[Path]:
    """Write the libraries to preload into a folder and return their paths.

    Raises:
        RuntimeError: this torch is not built for CUDA, or the compiler refused.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed")
    torch = Path(spec.origin).parent
    imported = [torch / "lib" / name for name in LIBRARIES]
    if not imported[0].exists():
        raise RuntimeError("this torch is not built for CUDA")
    nvidia = torch.parent / "nvidia"
    includes = sorted({header.parent for header in nvidia.glob("**/include/*.h")})
    includes.append(torch.parent / "triton" / "backends" / "nvidia" / "include")  # crt/
    symbols = _run("nm", "-D", "--undefined-only", *map(str, imported))
    header = next(path for path in includes if (path / "cuda.h").exists()) / "cuda.h"
    driver = DRIVER.findall(header.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    device = {*IMPORTS.findall(symbols), *driver, *(f"{name}_v2" for name in driver)}
    nvrtc = {name for name in device if name.startswith("nvrtc")}
    return [
        _library(folder / "libcuda.so.1", "device.c", device - nvrtc, includes),
        _library(folder / next(nvidia.glob("**/libnvrtc.so.*")).name, "nvrtc.c", nvrtc, includes),
        _library(folder / "libnvidia-ml.so.1", "nvml.c", set(), includes),
    ]


def _library(path: Path, source: str, names: set[str], includes: list[Path]) -> Path:
    """Compile a file and stubs of every name it does not define (weak, so that it goes before).

    A library that stands for one by name gives its symbols that one's version, its name.
    """
    stubs, versions = path.with_suffix(".stubs.c"), path.with_suffix(".versions")
    version = path.name if source == "nvrtc.c" else ""
    versions.write_text(f"{version} {{ global: *; }};\n", encoding="utf-8")
    stub = "__attribute__((weak)) int {}(void) {{ return 0; }}\n"
    stubs.write_text("".join(map(stub.format, sorted(names))), encoding="utf-8")
    _run(
        *("gcc", "-shared", "-fPIC", "-O1", "-w", "-o", str(path), str(HERE / source), str(stubs)),
        *(f"-I{folder}" for folder in includes),
        *(f"-Wl,-soname,{path.name}", f"-Wl,--version-script,{versions}", "-lpthread"),
    )
    return path


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    print(*build(Path(sys.argv[1])), sep=":")
