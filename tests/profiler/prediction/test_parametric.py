"""Composed peaks against replayed ones, away from the points where the profile was taken."""

from __future__ import annotations

import pytest

from planner.cost.model import CostModel
from profiler.devices.table import CPU, device_spec, workspaces_of
from profiler.placement import Decision, Placement
from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

pytestmark = pytest.mark.slow

DEVICES = {"cpu": CPU, "cuda": device_spec("rtx-2060-super")}
VIT, RESNET, MOBILE, MAMBA = "test_vit", "resnet18", "mobilenetv2", "mambavision_t"


def workload(model: str, method: str = "full", **changes: object) -> Workload:
    base = Workload(model=model, method=method, image_size=64, num_classes=10, micro_batch=3)
    return base.replace(**changes)


@pytest.fixture(scope="module")
def models() -> dict[str, CostModel]:
    return {target: CostModel(device) for target, device in DEVICES.items()}


def composed(models: dict[str, CostModel], candidate: Candidate, target: str) -> int:
    model = models[target]
    workspace = model.predict(candidate).memory.peak_bytes if target == "cpu" else 0
    return workspace or model.estimate(candidate).peak_bytes


def replayed(candidate: Candidate, target: str) -> int:
    memory = KernelMemory.THIS_BATCH if target == "cuda" else KernelMemory.NONE
    options = ReplayOptions(kernel_memory=memory)
    return replay_step(candidate, device=DEVICES[target], options=options).peak_bytes


def placed(load: Workload, kind: str, units: tuple[str, ...]) -> Placement:
    options = {
        "none": dict[str, str](),
        "static": dict.fromkeys(units, Decision.RECOMPUTE),
        "cheap": dict.fromkeys(units, Decision.DROP_CHEAP),
        "second": dict.fromkeys(units[1::2], Decision.RECOMPUTE),
        "mixed": {
            unit: (Decision.KEEP, Decision.DROP_CHEAP, Decision.RECOMPUTE)[index % 3]
            for index, unit in enumerate(units)
        },
    }
    return Placement(decisions=options[kind])


CASES = [
    (workload(VIT), "mixed"),
    (workload(VIT, micro_batch=37), "none"),
    (workload(VIT, micro_batch=37, accumulation=4), "static"),
    (workload(VIT, "lora", rank=2), "mixed"),
    (workload(VIT, "lora", rank=16, micro_batch=11, precision="bf16"), "second"),
    (workload(VIT, "bitfit", micro_batch=7, optimizer="sgd"), "cheap"),
    (workload(VIT, "head", micro_batch=20), "none"),
    (workload(RESNET, micro_batch=9), "mixed"),
    (workload(RESNET, micro_batch=9, accumulation=2), "second"),
    (workload(RESNET, "bn_head", micro_batch=24, accumulation=2), "none"),
    (workload(MOBILE, micro_batch=6, precision="bf16"), "mixed"),
    (workload("tiny_vit_5m", "bitfit", micro_batch=5), "second"),
    (workload(VIT, "side", rank=2, micro_batch=5), "none"),
    (workload(VIT, "side", rank=16, micro_batch=5), "static"),
    # blocks of 256, and matrices of fewer than 4096 weights in fp32: no polynomial of the rank
    (workload(VIT, "lora", rank=7, optimizer="adamw8bit"), "static"),
    # operands of convolutions and layer norms that are copied
    (workload("convnext_atto", "ln_tune", micro_batch=5), "none"),
    (workload("convnext_atto", micro_batch=12), "second"),
    # GaLore projects no matrix of 64 rows at rank 64: its state does not grow with the rank
    (workload(VIT, "galore", rank=64, micro_batch=1), "none"),
    # at few images the scratch of the selective scan is what the peak is made of
    (workload(MAMBA, "bitfit", micro_batch=1), "static"),
]
ONLY_ON_CPU = [
    # where one window is the whole map, one image's attention on a CPU copies less than two images'
    (workload("tiny_vit_5m", "bitfit", micro_batch=1), "none"),
    (workload("tiny_vit_5m", "bitfit", micro_batch=1, precision="bf16"), "second"),
]
TOLERANCE = 0.001


def name_of(case: object) -> str:
    if not isinstance(case, Workload):
        return str(case)
    return f"{case.model}-{case.method}-{case.precision}-b{case.micro_batch}x{case.accumulation}"


@pytest.mark.parametrize(
    ("load", "kind", "target"),
    [(*case, target) for target in DEVICES for case in CASES]
    + [(*case, "cpu") for case in ONLY_ON_CPU],
    ids=name_of,
)
def test_composed_is_replayed(
    models: dict[str, CostModel], load: Workload, kind: str, target: str
) -> None:
    model = models[target]
    candidate = Candidate(workload=load, placement=placed(load, kind, model.profiles.units(load)))
    seen = replayed(candidate, target)
    # with a budget that is far away, the bytes are composed and not read
    predicted = model.estimate(candidate, DeviceBytes(1)).peak_bytes
    if target == "cuda":
        used = model._options_by_unit(load, candidate.placement).values()
        live = predicted / model.profiles.allocator.overhead(load, [*used]).allocated
        predicted = round(live) - sum(workspaces_of(model.device))
    assert predicted == pytest.approx(seen, rel=TOLERANCE)
