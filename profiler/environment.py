"""The software and the processor of this machine, as recorded beside every measurement."""

from __future__ import annotations

import msgspec


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Software and hardware that a measured number depends on.

    Attributes:
        python: version of Python.
        torch: version of PyTorch.
        timm: version of timm.
        machine: instruction set (``x86_64``).
        processor: model name of the CPU.
        threads: threads of PyTorch's CPU kernels.
        selective_scan: implementation of Mamba's scan.
        cuda: version of CUDA that PyTorch uses, or ``none`` without a CUDA device.
    """

    python: str
    torch: str
    timm: str
    machine: str
    processor: str
    threads: int
    selective_scan: str
    cuda: str

    def to_json(self) -> dict[str, str | int]:
        """Return plain data."""
        return msgspec.structs.asdict(self)


def environment() -> Environment:
    """Return the environment of this process."""
    import platform
    from importlib.metadata import version

    import torch

    from profiler.models.backbones.scan_kernel import describe_kernel

    return Environment(
        python=platform.python_version(),
        torch=str(torch.__version__),
        timm=version("timm"),
        machine=platform.machine(),
        processor=processor_name(),
        threads=torch.get_num_threads(),
        selective_scan=describe_kernel(),
        cuda=str(torch.version.cuda) if torch.cuda.is_available() else "none",
    )


def processor_name() -> str:
    """Return the model name of this machine's CPU, or ``unknown``."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    import platform

    return platform.processor() or "unknown"
