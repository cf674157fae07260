"""Save and load the tensors that a method trained: one safetensors file, without the backbone.

The file holds the trainable parameters and, for BatchNorm layers with trainable parameters, their
running statistics. All other tensors are those of the pretrained backbone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from profiler.errors import InputError

TENSORS_FILE = "learned.safetensors"

TENSORS_SCHEMA = "budgetplan.learned/1"


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes, by name in the model."""
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        own = dict(module.named_parameters(recurse=False))
        learning = {key: value for key, value in own.items() if value.requires_grad}
        tensors.update({prefix + key: value for key, value in learning.items()})
        if learning and isinstance(module, nn.modules.batchnorm._BatchNorm):
            tensors.update({prefix + k: b for k, b in module.named_buffers(recurse=False)})
    return tensors


def save_trained_tensors(model: nn.Module, directory: Path, *, method: str) -> None:
    """Write ``trained_tensors`` into a directory, with the method's name as metadata."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in trained_tensors(model).items()}
    save_file(
        tensors, directory / TENSORS_FILE, metadata={"schema": TENSORS_SCHEMA, "method": method}
    )


def load_trained_tensors(model: nn.Module, directory: Path, *, method: str) -> None:
    """Copy saved tensors into a model that the same method prepared.

    Raises:
        InputError: the file is missing, damaged, or of another method or model.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / TENSORS_FILE
    if not path.is_file():
        raise InputError(
            f"{directory} holds no {TENSORS_FILE}; give the folder of a model of method {method}"
        )
    wanted = trained_tensors(model)
    try:
        with safe_open(path, framework="pt") as file:
            written_by = (file.metadata() or {}).get("method")
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error})") from error
    if written_by != method:
        raise InputError(f"{path} was written by method {written_by!r}, not by {method!r}")
    for name in sorted(wanted.keys() ^ saved.keys()):
        verb = "lacks" if name in wanted else "has an unknown"
        raise InputError(f"{path} does not fit the model: it {verb} tensor {name!r}")
    for name, tensor in wanted.items():
        _check_fits(name, saved[name], tensor, path)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])


def _check_fits(name: str, saved: Tensor, wanted: Tensor, path: Path) -> None:
    """Refuse a tensor of another shape or kind of number, or with values that are not finite."""
    if wanted.shape != saved.shape:
        raise InputError(
            f"{path} does not fit the model: {name!r} has shape {tuple(saved.shape)}, "
            f"the model has {tuple(wanted.shape)}"
        )
    if wanted.is_floating_point():
        check_weight(name, saved, path)


def check_weight(name: str, saved: Tensor, path: Path) -> None:
    """Refuse a tensor that cannot be a trained weight.

    Raises:
        InputError: its numbers have no fractions, or one is not finite.
    """
    if not saved.is_floating_point():
        raise InputError(f"{path} does not fit the model: {name!r} holds {saved.dtype}")
    if not bool(torch.isfinite(saved.float()).all()):
        raise InputError(f"{path} is damaged: {name!r} has values that are not finite")
