"""The folder of a trained model: written after training, loaded for evaluation or inference.

    plan.json       the plan
    training.json   accuracy by step and by epoch, learning rate, seed, weights, data, class names,
                    transform, versions, placements
    model/          trained tensors of the best epoch (peft's own format, or safetensors)
    checkpoint-N/   trained tensors of the last step, and the state of the optimizer
    run.csv         the readings
    run.svg         their curves

Only the trained tensors are saved. The frozen tensors are made again from the seed and the weights
that training.json records, and are refused if they can no longer be the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from planner.disk.drafts import draft_folder
from planner.plan import PLAN_FILE, Plan, read_plan
from planner.training.checkpoints import latest_checkpoint
from planner.training.history import TrainResult, WeightsFile, read_result
from planner.training.plan_check import check_against_model
from profiler.errors import InputError
from profiler.models.backbones import ENTRY_MARK, split_entry
from profiler.models.build import BuiltModel, build_model
from profiler.models.methods.save_load import load_trained_tensors, trained_tensors

if TYPE_CHECKING:
    from torch import nn


MODEL_FOLDER = "model"


def save_model(built: BuiltModel, folder: Path) -> None:
    """Write the trained tensors of a model into a folder, which is replaced as a whole.

    Raises:
        InputError: the folder cannot be written.
    """
    with draft_folder(folder, remedy="free some space and continue with --resume") as draft:
        built.method.save(built.model, draft)


def weights_file_of(path: Path | None) -> WeightsFile | None:
    """Return the record of a weights file; None without a file.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None:
        return None
    try:
        with split_entry(path)[0].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise InputError(f"cannot read weights file {path}: {error.strerror or error}") from error
    return WeightsFile(path=str(path.absolute()), sha256=digest.hexdigest())


def load_trained(
    folder: Path,
    *,
    weights: Path | None = None,
    pretrained: bool | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Return the model that a training saved in its folder, in evaluation mode on the CPU.

    The model maps images [batch, 3, S, S], as ``planner.training.images.load`` prepares them, to
    logits [batch, classes]. Its seed and weights are those that ``training.json`` records. A record
    of minor version 0 has no seed; seed 0 is then used unless one is given.

    Args:
        folder: folder of the training.
        weights: present place of the backbone's weights file; None for the recorded place.
        pretrained: whether timm's pretrained weights are loaded; None if the record decides.
        seed: seed of random weights; None if the record decides.

    Raises:
        InputError: the folder holds no training, or one of another model, or the weights that the
            training began with cannot be loaded any more.
    """
    plan, result = read_plan(folder / PLAN_FILE), read_result(folder)
    return build_trained(
        folder, plan, result, weights=weights, pretrained=pretrained, seed=seed, is_last=False
    )


def build_trained(
    folder: Path,
    plan: Plan,
    result: TrainResult,
    *,
    weights: Path | None,
    pretrained: bool | None = None,
    seed: int | None = None,
    is_last: bool,
) -> nn.Module:
    """Return the model of a training whose records were read, as ``load_trained`` does.

    Args:
        folder: folder of the training.
        plan: plan that was trained.
        result: record of the training.
        weights: see ``load_trained``.
        pretrained: see ``load_trained``.
        seed: see ``load_trained``.
        is_last: whether to load the tensors of the last step instead of the best epoch.

    Raises:
        InputError: the training is one of another model, or the weights that it began with cannot
            be loaded any more.
    """
    workload = plan.candidate.workload
    reference = check_against_model(plan).model
    if reference.state_dict().keys() == trained_tensors(reference).keys():
        # Every tensor was trained and saved, so the weights it began with do not matter.
        built = build_model(workload)
    else:
        if result.weights.kind == "file" or weights is not None:
            weights = _same_file(result, weights, folder)
        if pretrained is None:
            pretrained = result.weights.kind == "pretrained"
        torch.manual_seed(seed if seed is not None else result.seed or 0)
        built = build_model(workload, weights=weights, pretrained=pretrained)
        if weights is None:
            _check_pretrained(result, built, folder)
    if is_last:
        load_trained_tensors(built.model, _last_tensors(folder), method=built.method.name)
    else:
        built.method.load(built.model, folder / MODEL_FOLDER)
    return built.model.eval()


def _last_tensors(folder: Path) -> Path:
    """Return the folder with the tensors of a training's last step."""
    found = latest_checkpoint(folder)
    if found is None:
        raise InputError(f"{folder} has no checkpoint; only the best epoch can be loaded")
    return found


def _check_pretrained(result: TrainResult, built: BuiltModel, folder: Path) -> None:
    """Refuse a model without the pretrained weights that the training began with."""
    if result.weights.kind == "pretrained" and built.weights != result.weights:
        raise InputError(
            f"{folder} was trained on the pretrained weights {result.weights.detail}, which cannot "
            f"be loaded (got {built.weights.kind} weights: {built.weights.detail}); "
            "give them as a weights file"
        )


def _same_file(result: TrainResult, given: Path | None, folder: Path) -> Path:
    """Return the weights file of a training; refuse a missing file and another content."""
    recorded = result.weights_file
    before = Path(recorded.path if recorded is not None else result.weights.detail)
    path = given or before
    entry = split_entry(before)[1]
    if entry is not None and split_entry(path)[1] is None:
        path = Path(f"{path}{ENTRY_MARK}{entry}")
    if not split_entry(path)[0].is_file():
        raise InputError(
            f"the weights file {path} of {folder} is missing; give its present place as weights"
        )
    found = weights_file_of(path)
    if recorded is not None and found is not None and found.sha256 != recorded.sha256:
        raise InputError(
            f"the weights file {path} is not the one that {folder} was trained on (its SHA-256 "
            "differs); give the original file as weights"
        )
    return path
