"""Plans the fine-tuning of vision models on small GPUs, with memory, time and energy.

The functions below are the Python interface. ``import planner`` imports no torch.
"""

from planner.api import (
    apply_plan,
    classify,
    estimate,
    evaluate,
    explain,
    export_plan,
    grid,
    load_backbone,
    load_images,
    load_plan,
    load_trained,
    measure,
    optimizer_and_schedule,
    predict,
    recommend,
    rehearse,
    train,
)

__all__ = [
    "apply_plan",
    "classify",
    "estimate",
    "evaluate",
    "explain",
    "export_plan",
    "grid",
    "load_backbone",
    "load_images",
    "load_plan",
    "load_trained",
    "measure",
    "optimizer_and_schedule",
    "predict",
    "recommend",
    "rehearse",
    "train",
]
