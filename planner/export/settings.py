"""The values of a plan in the words of other training programs. No torch is imported."""

from __future__ import annotations

from typing import Any

from planner.plan import Plan
from profiler.errors import UsageError
from profiler.placement import Decision
from profiler.workload import LEVERS, Lever, Workload

OPTIMIZERS_OF_HF = {
    "adamw": "adamw_torch",
    "sgd": "sgd",
    "adamw8bit": "adamw_bnb_8bit",
    "adamw_host": "adamw_torch",
}
"""Names of optimizers in ``transformers.TrainingArguments``."""

OPTIMIZERS_OF_TIMM = {"adamw": "adamw", "sgd": "momentum"}
"""Names of optimizers in timm, whose ``sgd`` has Nesterov's momentum; ``momentum`` has not."""

TIMM_LEVERS: dict[Lever, str] = {"channels_last": "channels-last", "compile": "torchcompile"}
"""Levers that timm's script has."""

APPLIED_LEVERS: dict[str, tuple[Lever, ...]] = {
    "script": LEVERS,
    "hf": ("channels_last", "fused", "tf32", "compile"),
    "lightning": ("channels_last", "fused", "cudnn_benchmark"),
    "timm": tuple(TIMM_LEVERS),
    "peft": (),
}
"""Levers that a target applies, by its name."""

PRECISIONS_OF_LIGHTNING = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Names of precisions in Lightning's Trainer."""


def speed_differences(plan: Plan, target: str) -> tuple[str, ...]:
    """Return one sentence for each setting of the plan's speed or power that a target leaves out.

    Args:
        plan: the plan.
        target: name of the target.
    """
    missing = set(plan.candidate.workload.levers) - set(APPLIED_LEVERS[target])
    found = [f"the lever {name} is not applied" for name in LEVERS if name in missing]
    watts = plan.prediction.power_limit_watts
    if watts is not None:
        found.append(
            f"the power limit is not set: an administrator sets it by `nvidia-smi -pl {watts:.0f}`"
        )
    return tuple(found)


def hf_arguments(plan: Plan) -> dict[str, Any]:
    """Return keyword arguments of ``transformers.TrainingArguments``.

    Optimizer and schedule are those of ``planner.export.hf.PlanTrainer``. The values of both stand
    here as well, for a Trainer that makes its own. Gradient checkpointing stays off, because the
    plan's placement recomputes.
    """
    workload, recipe = plan.candidate.workload, plan.require_recipe()
    selects = recipe.selects_epoch
    return {
        "output_dir": "trained",
        "per_device_train_batch_size": workload.micro_batch,
        "per_device_eval_batch_size": workload.micro_batch,
        "gradient_accumulation_steps": workload.accumulation,
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warm_up_steps,
        "weight_decay": recipe.weight_decay,
        "optim": _hf_optimizer(workload),
        "tf32": True if "tf32" in workload.levers else None,
        "torch_compile": "compile" in workload.levers,
        # the Trainer clips at 1 by default; 0 means not at all
        "max_grad_norm": workload.grad_clip or 0.0,
        "bf16": workload.precision == "bf16",
        "fp16": workload.precision == "fp16",
        "dataloader_drop_last": True,
        "remove_unused_columns": False,
        "eval_strategy": "epoch" if selects else "no",
        "save_strategy": "epoch" if selects else "no",
        "save_total_limit": 2,
        "load_best_model_at_end": selects,
        "metric_for_best_model": "accuracy",
        "logging_steps": 10,
        "report_to": "none",
    }


def _hf_optimizer(workload: Workload) -> str:
    fused = "fused" in workload.levers and workload.optimizer == "adamw"
    return "adamw_torch_fused" if fused else OPTIMIZERS_OF_HF[workload.optimizer]


def lightning_config(plan: Plan) -> dict[str, Any]:
    """Return the configuration file of a LightningCLI."""
    workload, recipe = plan.candidate.workload, plan.require_recipe()
    parts = "planner.export.lightning"
    callbacks: list[dict[str, Any]] = [
        {"class_path": f"{parts}.BudgetCallback", "init_args": {"plan": "plan.json"}}
    ]
    if recipe.patience_epochs is not None:
        callbacks.append(
            {
                "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                "init_args": {
                    "monitor": "held_out_accuracy",
                    "mode": "max",
                    "patience": recipe.patience_epochs,
                },
            }
        )
    if recipe.selects_epoch:
        callbacks.append(
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"monitor": "held_out_accuracy", "mode": "max"},
            }
        )
    return {
        "seed_everything": 0,
        "trainer": {
            "max_epochs": recipe.epochs,
            "accumulate_grad_batches": workload.accumulation,
            "precision": PRECISIONS_OF_LIGHTNING[workload.precision],
            "gradient_clip_val": workload.grad_clip,
            "devices": 1,  # several would multiply the batch
            "benchmark": "cudnn_benchmark" in workload.levers,
            "num_sanity_val_steps": 0,
            "callbacks": callbacks,
        },
        "model": {"class_path": f"{parts}.PlanModule", "init_args": {"plan": "plan.json"}},
        "data": {"class_path": f"{parts}.PlanData", "init_args": {"plan": "plan.json"}},
    }


def timm_arguments(plan: Plan) -> list[str]:
    """Return the arguments of timm's ``train.py``.

    The options are those of github.com/huggingface/pytorch-image-models @2aabaef0.

    Raises:
        UsageError: the script has no such method or optimizer.
    """
    workload, recipe = plan.candidate.workload, plan.require_recipe()
    if workload.method != "full":
        raise UsageError(
            f"timm's train.py trains all weights, the plan's method is {workload.method}; export "
            "it with --to script"
        )
    if workload.optimizer not in OPTIMIZERS_OF_TIMM:
        raise UsageError(
            f"timm's train.py has no {workload.optimizer}; export the plan with --to script"
        )
    options: dict[str, object] = {
        "model": workload.model,
        "num-classes": workload.num_classes,
        "img-size": workload.image_size,
        "batch-size": workload.micro_batch,
        "validation-batch-size": workload.micro_batch,
        "grad-accum-steps": workload.accumulation,
        "opt": OPTIMIZERS_OF_TIMM[workload.optimizer],
        "lr": recipe.learning_rate,
        "weight-decay": recipe.weight_decay,
        # timm has no constant schedule; decay of 1 leaves the rate as it is
        "sched": "cosine" if recipe.schedule == "cosine" else "step",
        "epochs": recipe.epochs,
        "warmup-epochs": 0,
        "smoothing": recipe.label_smoothing,
        "color-jitter": 0.0,
    }
    if recipe.schedule != "cosine":
        options["decay-rate"] = 1.0
    if recipe.layer_decay != 1:
        options["layer-decay"] = recipe.layer_decay
    if workload.grad_clip is not None:
        options["clip-grad"] = workload.grad_clip
    if workload.drop_path:
        options["drop-path"] = workload.drop_path
    if recipe.zero_head:
        options["head-init-scale"] = 0.0
    flags = ["pretrained"] if recipe.weights == "pretrained" else []
    if recipe.schedule == "cosine":
        flags.append("sched-on-updates")
    if workload.precision != "fp32":
        flags.append("amp")
        options["amp-dtype"] = {"bf16": "bfloat16", "fp16": "float16"}[workload.precision]
    if recomputes_all_units(plan):
        flags.append("grad-checkpointing")
    flags += [flag for lever, flag in TIMM_LEVERS.items() if lever in workload.levers]
    if not recipe.augment:
        flags.append("no-aug")
    return [f"--{name}={value}" for name, value in options.items()] + [f"--{f}" for f in flags]


def recomputes_all_units(plan: Plan) -> bool:
    """Return whether the placement recomputes every unit as a whole."""
    placement, units = plan.candidate.placement, plan.prediction.units
    return bool(units) and all(placement.decision(u.name) is Decision.RECOMPUTE for u in units)
