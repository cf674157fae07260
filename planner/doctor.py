"""Examine this machine: working parts, missing parts, and the remedy for each.

A finding is ``ok``, ``absent`` (an optional part is missing; the advice names its purpose) or
``fault`` (a part is here and does not work).
"""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from planner.disk.free_space import check_folder
from planner.plan import versions
from profiler.devices.cuda_properties import has_kernels_for
from profiler.devices.nvml import detect_gpu, why_no_gpu
from profiler.errors import InputError, printable_line
from profiler.models.silent_log import silent_log
from profiler.store import Store
from profiler.units import GIB, format_bytes

State = Literal["ok", "absent", "fault"]
"""Whether a part works, is missing though useful, or is here and does not work."""

OPTIONAL_PACKAGES = {
    "matplotlib": ("plot", "draw a step as a PNG"),
    "transformers": ("hf", "train plans with transformers' Trainer"),
    "accelerate": ("hf", "train plans with transformers' Trainer"),
    "lightning": ("lightning", "train plans with Lightning"),
    "jsonargparse": ("lightning", "train plans with Lightning"),
    "open-clip-torch": ("training-free", "list models that need no training"),
    "fastapi": ("service", "serve questions over HTTP"),
    "uvicorn": ("service", "serve questions over HTTP"),
    "psycopg": ("postgresql", "keep studies in PostgreSQL"),
    "grpcio": ("grpc", "reach studies through a gRPC proxy"),
    "submitit": ("slurm", "start workers through SLURM"),
    "mcp": ("mcp", "answer a language model over MCP"),
    "zeus": ("zeus", "read energy counters by BUDGETPLAN_ENERGY_SOURCE=zeus"),
    "animal-mnist": ("animals", "use --data animals"),
}
"""Package to the extra that installs it, and the purpose."""

COMPILERS = {
    "run Vim and MambaVision faster on the CPU": os.environ.get("CC") or "cc",
    "rehearse plans on an emulated GPU": "gcc",
    "rehearse plans on an emulated GPU (binutils)": "nm",
}
"""Purpose to the program that serves it."""

WANTED_BYTES = 10 * GIB
"""Free space for pretrained weights, a study and a few trainings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The state of a part of the machine.

    Attributes:
        name: the part.
        state: whether it works, is missing, or is broken.
        found: version, size or message.
        advice: remedy; empty if nothing is needed.
    """

    name: str
    state: State
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """Return an entry of ``budgetplan doctor --json``."""
        return asdict(self)


def examine() -> tuple[Finding, ...]:
    """Return the findings on this machine."""
    return tuple(
        finding
        for part in (_packages, _gpu, _compiler, _disk, _cache, _hub, _optional)
        for finding in part()
    )


def findings_to_json(findings: tuple[Finding, ...]) -> dict[str, Any]:
    """Return what ``budgetplan doctor --json`` prints."""
    return {
        "schema": "budgetplan.doctor/1",
        "works": not has_fault(findings),
        "findings": [finding.to_json() for finding in findings],
    }


def has_fault(findings: tuple[Finding, ...]) -> bool:
    """Return whether something does not work."""
    return any(finding.state == "fault" for finding in findings)


def _packages() -> Iterator[Finding]:
    """Import every package that the program cannot do without."""
    for name in ("torch", "torchvision", "timm", "peft", "bitsandbytes", "optuna"):
        try:
            with warnings.catch_warnings(), silent_log(name):
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        except Exception as error:  # a broken installation raises errors of many types
            yield Finding(
                name=name,
                state="fault",
                found=f"cannot be imported: {printable_line(str(error))}",
                advice="install budgetplan anew in a fresh virtual environment",
            )
        else:
            yield Finding(name=name, state="ok", found=_version(name))
    own = versions()["budgetplan"]
    yield Finding(name="budgetplan", state="ok", found=own)


def _gpu() -> Iterator[Finding]:
    """Compare the GPU that the driver reports with what PyTorch can use."""
    gpu = detect_gpu()
    if gpu is None:
        yield Finding(
            name="GPU",
            state="absent",
            found=why_no_gpu(),
            advice="plans can be made for any GPU of `budgetplan devices`; real runs use the CPU",
        )
        return
    import torch

    name, capability = gpu.spec.full_name, gpu.compute_capability
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        yield _architecture(name, capability, torch.cuda.get_arch_list())
        return
    why = str(said[-1].message).split(". ")[0] if said else "CUDA is not available to it"
    if torch.version.cuda is None:
        why = "this build of PyTorch has no CUDA"
    yield Finding(
        name="GPU",
        state="fault",
        found=f"{name}; PyTorch {torch.__version__} cannot use it: {why}"[:300],
        advice="install a driver for the CUDA version of this PyTorch, or a PyTorch for the driver",
    )


def _architecture(name: str, capability: tuple[int, int], built_for: list[str]) -> Finding:
    """Return whether this PyTorch has kernels for a GPU."""
    number = f"{capability[0]}.{capability[1]}"
    if has_kernels_for(capability, built_for):
        return Finding(name="GPU", state="ok", found=f"{name}, compute capability {number}")
    return Finding(
        name="GPU",
        state="fault",
        found=f"{name} has compute capability {number}; this PyTorch is built for "
        f"{', '.join(built_for)}",
        advice="install a PyTorch that is built for this GPU",
    )


def _compiler() -> Iterator[Finding]:
    for purpose, command in COMPILERS.items():
        program = shutil.which(command.split()[0])
        if program is not None:
            yield Finding(name=command, state="ok", found=program)
        else:
            advice = f"install a C compiler to {purpose}"
            yield Finding(name=command, state="absent", found="none", advice=advice)


def _disk() -> Iterator[Finding]:
    here = Path.cwd()
    try:
        check_folder(here)
    except InputError as error:
        yield Finding(
            name="this folder", state="fault", found=str(error), advice="work in another folder"
        )
        return
    free = shutil.disk_usage(here).free
    is_small = free < WANTED_BYTES
    yield Finding(
        name="this folder",
        state="absent" if is_small else "ok",
        found=f"{here}: {format_bytes(free)} free",
        advice=f"trainings and weights may need {format_bytes(WANTED_BYTES)}" if is_small else "",
    )


def _cache() -> Iterator[Finding]:
    folder = Store.default().folder
    advice = "set BUDGETPLAN_CACHE to a folder that can be written into; profiles are made anew"
    if folder is None:
        yield Finding(name="profile cache", state="absent", found="no home folder", advice=advice)
        return
    try:
        check_folder(folder)
    except InputError as error:
        yield Finding(name="profile cache", state="fault", found=str(error), advice=advice)
        return
    sizes = [path.stat().st_size for path in folder.glob("*.npz")]
    yield Finding(
        name="profile cache",
        state="ok",
        found=f"{folder}: {len(sizes)} profiles, {format_bytes(sum(sizes))}",
    )


def _hub() -> Iterator[Finding]:
    from profiler.models.backbones.weights import hub_is_reachable

    if hub_is_reachable():
        yield Finding(name="model hub", state="ok", found="reachable")
    else:
        yield Finding(
            name="model hub",
            state="absent",
            found="not reachable",
            advice="give pretrained weights by --weights FILE; without them weights are random",
        )


def _optional() -> Iterator[Finding]:
    for name, (extra, purpose) in OPTIONAL_PACKAGES.items():
        found = _version(name)
        if found:
            yield Finding(name=name, state="ok", found=found)
        else:
            advice = f"pip install 'budgetplan[{extra}]' to {purpose}"
            yield Finding(name=name, state="absent", found="not installed", advice=advice)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
