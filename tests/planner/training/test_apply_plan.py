"""A user's own timm model under a plan, against the model that budgetplan builds itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from plans import make_plan
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from planner.training.apply import apply_plan, remove_placement
from profiler.checkpointing.apply import apply_placement
from profiler.errors import InputError
from profiler.models.build import build_model
from profiler.models.methods import get_method
from profiler.placement import Decision, Placement
from profiler.training_step import TrainingStep
from profiler.workload import Workload

VIT = Workload(
    model="test_vit", method="lora", rank=4, micro_batch=4, image_size=160, num_classes=5
)
RESNET = VIT.replace(model="test_resnet", method="full", rank=None, image_size=32)
FROZEN = RESNET.replace(frozen_batch_norm=True)


def own_model(workload: Workload, seed: int = 1) -> nn.Module:
    """A model as a user builds it."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(workload.model, num_classes=workload.num_classes)
    return model.train()


def placement_of(workload: Workload) -> Placement:
    units = build_model(workload, device="meta").units
    return Placement(
        decisions={**dict.fromkeys(units, Decision.RECOMPUTE), units[-1]: Decision.DROP_CHEAP}
    )


def images_of(workload: Workload) -> tuple[Tensor, Tensor]:
    size = (workload.micro_batch, 3, workload.image_size, workload.image_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(2))
    return images, torch.arange(workload.micro_batch) % workload.num_classes


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "workload", [VIT, RESNET, FROZEN], ids=["wrapped", "in place", "frozen statistics"]
)
def test_two_steps_have_the_gradients_of_the_model_that_budgetplan_builds(
    workload: Workload, tmp_path: Path
) -> None:
    placement, user = placement_of(workload), own_model(workload)
    save_file(user.state_dict(), tmp_path / "weights.safetensors")
    ours = build_model(workload, weights=tmp_path / "weights.safetensors")
    apply_placement(ours.model, placement, units=ours.units)
    model = apply_plan(user, make_plan(workload, placement))
    # adapters are drawn at random; everything else comes from the same file already
    fresh = {n for n, p in model.named_parameters() if p.requires_grad}
    for name, tensor in ours.model.state_dict().items():
        assert name in fresh or torch.equal(tensor, model.state_dict()[name])
    model.load_state_dict(ours.model.state_dict())

    images, labels = images_of(workload)
    learning = [p for p in ours.model.parameters() if p.requires_grad]
    step = TrainingStep(ours.model, torch.optim.SGD(learning, lr=0.1), workload)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        F.cross_entropy(model(images), labels).backward()
        step.accumulate([lambda: (images, labels)])
        found, expected = gradients(model), gradients(ours.model)
        assert found.keys() == expected.keys() == fresh
        assert all(torch.equal(found[name], expected[name]) for name in found)
        optimizer.step()
        optimizer.zero_grad()
        step.finish()


def test_the_placement_recomputes_until_it_is_removed() -> None:
    calls: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    workload = VIT.replace(method="full", rank=None)
    model = apply_plan(own_model(workload), make_plan(workload, placement_of(workload)))
    first = model.get_submodule(build_model(workload, device="meta").units[0])
    next(m for m in first.modules() if isinstance(m, nn.Linear)).register_forward_hook(note("x"))
    images, labels = images_of(workload)
    F.cross_entropy(model(images), labels).backward()
    assert len(calls) == 2  # forward, and recomputation in backward
    remove_placement(model)
    F.cross_entropy(model(images), labels).backward()
    assert len(calls) == 3
    with pytest.raises(InputError, match="no plan is applied"):
        remove_placement(model)


def test_trained_tensors_are_saved_and_loaded_into_another_model(tmp_path: Path) -> None:
    plan = make_plan(VIT, placement_of(VIT))
    model = apply_plan(own_model(VIT), plan)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    get_method("lora").save(model, tmp_path)
    again = apply_plan(own_model(VIT), plan)
    get_method("lora").load(again, tmp_path)
    images, _ = images_of(VIT)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))


def test_another_model_than_the_plans_is_refused_and_left_as_it_is() -> None:
    plan = make_plan(VIT, placement_of(VIT))
    for other, reason in (
        (own_model(RESNET), "it is a ResNet, not a VisionTransformer"),
        (
            own_model(VIT.replace(num_classes=7)),
            r"head\.weight is \(7, \d+\), in the plan \(5, \d+\)",
        ),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            apply_plan(other, plan)
        assert "\n" not in str(caught.value)
        assert all(p.requires_grad for p in other.parameters())


def test_a_plan_is_applied_once() -> None:
    plan = make_plan(RESNET)
    model = apply_plan(own_model(RESNET), plan)
    with pytest.raises(InputError, match="applied to it already"):
        apply_plan(model, plan)
