"""The Python interface: the functions that the commands of the same names call.

    from planner import recommend, predict, measure, load_plan, apply_plan, train, load_trained

Arguments are plain values: a model name, a method name, a size in bytes or as text (``"2GB"``), a
device name. Results are the records of ``profiler.records``, ``planner.plan`` and
``planner.recommendation.answer``. Every error is a ``profiler.errors.BudgetplanError`` with a
one-line message. This package imports torch, timm and Optuna only when a function is called.

    workload_functions    predict, measure, profile_units, check_fits, fit_probability,
                          draw_timeline
    recommend_function    recommend
    plan_functions        load_plan, validate, train, apply_plan, load_trained
    rehearse_function     rehearse
    trained_functions     evaluate, classify
    explain_function      explain
    grid_function         grid
    estimate_function     estimate
    check_function        check
    calibrate_function    calibrate
    own_loop_functions    load_backbone, load_images, optimizer_and_schedule, export_plan
    training_free_functions  features, training_free, zero_shot, train_probe, evaluate_frozen
    arguments             plain arguments to workloads, candidates and sizes
"""

from planner.api.arguments import WorkloadOptions
from planner.api.calibrate_function import calibrate
from planner.api.check_function import check
from planner.api.estimate_function import estimate
from planner.api.explain_function import explain
from planner.api.grid_function import grid
from planner.api.own_loop_functions import (
    export_plan,
    load_backbone,
    load_images,
    optimizer_and_schedule,
)
from planner.api.plan_functions import (
    apply_plan,
    load_plan,
    load_trained,
    train,
    validate,
)
from planner.api.recommend_function import recommend
from planner.api.rehearse_function import rehearse
from planner.api.trained_functions import classify, evaluate
from planner.api.training_free_functions import (
    evaluate_frozen,
    features,
    is_without_tuning,
    load_frozen_plan,
    plan_kind,
    train_probe,
    training_free,
    zero_shot,
)
from planner.api.workload_functions import (
    UnitProfile,
    check_fits,
    draw_timeline,
    fit_probability,
    measure,
    predict,
    profile_units,
)

__all__ = [
    "UnitProfile",
    "WorkloadOptions",
    "apply_plan",
    "calibrate",
    "check",
    "check_fits",
    "classify",
    "draw_timeline",
    "estimate",
    "evaluate",
    "evaluate_frozen",
    "explain",
    "export_plan",
    "features",
    "fit_probability",
    "grid",
    "is_without_tuning",
    "load_backbone",
    "load_frozen_plan",
    "load_images",
    "load_plan",
    "load_trained",
    "measure",
    "optimizer_and_schedule",
    "plan_kind",
    "predict",
    "profile_units",
    "recommend",
    "rehearse",
    "train",
    "train_probe",
    "training_free",
    "validate",
    "zero_shot",
]
