"""The software and the processor of this machine, as recorded beside every measurement."""

from __future__ import annotations


def environment() -> dict[str, str | int]:
    """Return what a number depends on: versions, processor, threads."""
    import platform
    from importlib.metadata import version

    import torch

    from profiler.models.backbones.scan_kernel import describe_kernel

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "machine": platform.machine(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "selective_scan": describe_kernel(),
        "cuda": str(torch.version.cuda) if torch.cuda.is_available() else "none",
    }


def processor_name() -> str:
    """Return what this machine calls its processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or "unknown"
