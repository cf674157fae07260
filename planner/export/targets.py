"""The targets of ``budgetplan export``: the files of each, and the parts of a plan it leaves out.

script      a PyTorch loop
hf          transformers' Trainer, with its TrainingArguments
lightning   LightningCLI, with its configuration
timm        arguments of timm's train.py (full training only)
peft        the adapter's configuration (methods of peft only)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from planner.disk.drafts import write_file
from planner.disk.free_space import check_folder
from planner.disk.json_files import json_bytes
from planner.export.settings import (
    hf_arguments,
    lightning_config,
    recomputes_all_units,
    speed_differences,
    timm_arguments,
)
from planner.plan import Plan
from profiler.errors import InputError, UnknownNameError, UsageError
from profiler.models import backbones


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A plan in the form that another program takes.

    Attributes:
        target: name of the target.
        files: content of each file by name.
        command: how to start the training in the folder of the files.
        differences: one sentence for each part of the plan that the target does otherwise or not.
    """

    target: str
    files: Mapping[str, bytes]
    command: str
    differences: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write the files into a folder; none that exists with other content is replaced.

        Raises:
            InputError: there is such a file, or the folder cannot be written into.
        """
        check_folder(folder)
        for name, content in self.files.items():
            place = folder / name
            if place.exists() and (not place.is_file() or place.read_bytes() != content):
                raise InputError(f"{place} exists with other content; give another --out")
        for name, content in self.files.items():
            write_file(folder / name, content)

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return what ``budgetplan export --json`` prints."""
        return {
            "schema": "budgetplan.export/1",
            "target": self.target,
            "folder": str(folder),
            "files": list(self.files),
            "command": self.command,
            "differences": list(self.differences),
        }


def export_plan(plan: Plan, target: str) -> Export:
    """Return a plan in the form of a target.

    Raises:
        UnknownNameError: there is no such target.
        UsageError: the target cannot train the plan's method.
        InputError: the plan has no recipe.
    """
    if target not in TARGETS:
        raise UnknownNameError(
            kind="target", name=target, known=TARGETS, hint=f"use one of {', '.join(TARGETS)}"
        )
    made = TARGETS[target](plan)
    return replace(made, differences=(*made.differences, *speed_differences(plan, target)))


def _script(plan: Plan) -> Export:
    plan.require_recipe()
    return Export(
        target="script",
        files={"train.py": _program("train_script"), **_plan_file(plan)},
        command="python train.py",
        differences=(
            *_patience(plan),
            *_selection(plan),
            "there is no step-down when memory runs out",
        ),
    )


def _hf(plan: Plan) -> Export:
    return Export(
        target="hf",
        files={
            "train.py": _program("train_hf"),
            "training_arguments.json": json_bytes(hf_arguments(plan)),
            **_plan_file(plan),
        },
        command="python train.py",
        differences=(
            *_patience(plan),
            *_selection(plan),
            *_balance(plan),
            "the order of images is the Trainer's",
            "the last, incomplete group of micro-batches of an epoch is trained on too",
        ),
    )


def _lightning(plan: Plan) -> Export:
    # JSON is YAML
    return Export(
        target="lightning",
        files={
            "train.py": _program("train_lightning"),
            "config.yaml": json_bytes(lightning_config(plan)),
            **_plan_file(plan),
        },
        command="python train.py fit --config config.yaml",
        differences=(
            *_selection(plan),
            "the last, incomplete group of micro-batches of an epoch is trained on too",
        ),
    )


def _timm(plan: Plan) -> Export:
    workload, recipe = plan.candidate.workload, plan.require_recipe()
    if backbones.is_own_model(workload.model):
        raise UsageError(f"timm has no {workload.model}; export the plan with --to script")
    arguments = timm_arguments(plan)
    is_native = workload.image_size == backbones.native_image_size(workload.model)
    if not is_native and backbones.has_fixed_image_size(workload.model):
        arguments.append(f"--model-kwargs=img_size={workload.image_size}")
    differences = [
        "augmentation and the order of images are those of timm",
        "the folder needs train/ and validation/: without them timm validates on training images",
        "memory is not capped at the budget",
    ]
    if recipe.warm_up_steps:
        differences.append(
            f"there is no warm-up of {recipe.warm_up_steps} steps: timm counts whole epochs"
        )
    if recipe.head_rate_ratio != 1:
        differences.append("the classifier has the learning rate of the other parameters")
    if workload.frozen_batch_norm:
        differences.append("BatchNorm uses the statistics of each batch")
    if not plan.candidate.placement.is_none and not recomputes_all_units(plan):
        differences.append(
            f"the placement {plan.candidate.policy.display_name!r} is left out: timm recomputes "
            "all blocks (--grad-checkpointing) or none; more memory is needed than planned"
        )
    differences += [*_patience(plan), *_balance(plan)]
    return Export(
        target="timm",
        files={"timm_arguments.txt": "".join(f"{a}\n" for a in arguments).encode()},
        command="xargs -a timm_arguments.txt python train.py --data-dir FOLDER",
        differences=tuple(differences),
    )


def _peft(plan: Plan) -> Export:
    from profiler.models.build import build_model

    workload = plan.candidate.workload
    model = build_model(workload, device="meta").model
    configs = getattr(model, "peft_config", None)
    if configs is None:
        raise UsageError(
            f"{workload.method} is not a method of peft; export the plan with --to script"
        )
    with tempfile.TemporaryDirectory() as folder:
        configs["default"].save_pretrained(folder)
        content = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    differences = [
        "batch, precision, optimizer, recipe and placement are not part of the file",
    ]
    if workload.method == "adalora":
        differences.append(
            "total_step, tinit and tfinal are those of arXiv 2607.02158; set them to your number "
            "of steps, or the ranks are not reduced"
        )
    if workload.method == "qlora":
        differences.append("the backbone has to be quantised to 4 bits first")
    return Export(
        target="peft",
        files={"adapter_config.json": json_bytes(content)},
        command="peft.get_peft_model(model, peft.PeftConfig.from_pretrained(FOLDER))",
        differences=tuple(differences),
    )


TARGETS: dict[str, Callable[[Plan], Export]] = {
    "script": _script,
    "hf": _hf,
    "lightning": _lightning,
    "timm": _timm,
    "peft": _peft,
}


def _program(name: str) -> bytes:
    return (resources.files("planner.export.scripts") / f"{name}.py").read_bytes()


def _plan_file(plan: Plan) -> dict[str, bytes]:
    return {"plan.json": json_bytes(plan.to_json())}


def _balance(plan: Plan) -> tuple[str, ...]:
    if not plan.require_recipe().balance:
        return ()
    return ("classes are not drawn equally often",)


def _selection(plan: Plan) -> tuple[str, ...]:
    if not plan.require_recipe().selects_epoch:
        return ()
    return ("the epoch of the highest accuracy is kept, even by a single image",)


def _patience(plan: Plan) -> tuple[str, ...]:
    patience = plan.require_recipe().patience_epochs
    if patience is None:
        return ()
    return (f"training does not stop after {patience} epochs without a gain",)
