"""What the progress of a training says about rate, speed and memory beside the plan's."""

from __future__ import annotations

from dataclasses import replace

from planner.cli.plan_commands import _step_against_plan
from planner.plan import Plan
from planner.training.history import TrainProgress
from profiler.records import DeviceLabel, Memory
from profiler.workload import Workload
from tests.planner.training.plans import make_plan

STEP = TrainProgress(
    epoch=1, epochs=2, step=3, steps=9, done=0.1, loss=0.5, learning_rate=9.5e-4,
    images_per_second=612.4, reserved_bytes=1_210_000_000,
)  # fmt: skip


def gpu_plan() -> Plan:
    plan = make_plan(Workload(model="test_vit", num_classes=10, image_size=32))
    prediction = replace(
        plan.prediction,
        device=DeviceLabel(name="rtx-2060-super", full_name="RTX 2060 SUPER", kind="cuda"),
        memory=Memory(peak_bytes=10**9, reserved_bytes=1_260_000_000, device_bytes=1_400_000_000),
        step_seconds=0.05,
    )
    return replace(plan, prediction=prediction, budget_bytes=2 * 10**9)


def test_on_the_planned_kind_of_device_the_plans_numbers_stand_beside() -> None:
    assert _step_against_plan(STEP, gpu_plan()) == (
        ", lr 0.00095, 612 images/s (plan 640), 1.21 GB (plan 1.26 GB)"
    )


def test_a_training_on_the_cpu_is_not_compared_with_a_plan_for_a_gpu() -> None:
    on_cpu = replace(STEP, reserved_bytes=None)
    assert _step_against_plan(on_cpu, gpu_plan()) == ", lr 0.00095, 612 images/s"


def test_before_the_first_step_nothing_is_said() -> None:
    nothing = replace(STEP, learning_rate=None, images_per_second=None, reserved_bytes=None)
    assert _step_against_plan(nothing, gpu_plan()) == ""
