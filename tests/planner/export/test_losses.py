"""The exported programs train as ``budgetplan train`` does: equal losses, equal weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from planner import apply_plan, load_backbone
from planner.plan import Plan
from planner.recipe import Recipe
from planner.training.session import Session
from planner.training.zero_classifier import zero_classifier
from profiler.models.build import build_model
from profiler.placement import Decision, Placement
from profiler.workload import Workload
from tests.planner.training.plans import make_plan

STEPS, ACCUMULATION, MICRO_BATCH = 3, 2, 4


def plan_to_train(method: str) -> Plan:
    """A plan whose recipe has every part that a loop could miss."""
    workload = Workload(
        model="test_vit", method=method, rank=2 if method != "full" else None, image_size=160,
        micro_batch=MICRO_BATCH, accumulation=ACCUMULATION, num_classes=5, grad_clip=0.5,
    )  # fmt: skip
    placement = Placement(
        decisions={"blocks.0": Decision.RECOMPUTE, "blocks.1": Decision.DROP_CHEAP}
    )
    recipe = Recipe(
        learning_rate=1e-2, head_rate_ratio=3.0, warm_up_steps=1, weight_decay=0.05,
        label_smoothing=0.1, zero_head=True, epochs=1, source="for this test",
    )  # fmt: skip
    return replace(make_plan(workload, placement), recipe=recipe)


@pytest.fixture(scope="module", params=["full", "adalora"])
def reference(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Losses and weights of the project's own training steps, and the weights before them."""
    plan = plan_to_train(request.param)
    workload = plan.candidate.workload
    torch.manual_seed(0)
    images = torch.rand(STEPS * ACCUMULATION * MICRO_BATCH, 3, 160, 160)
    labels = torch.arange(len(images)) % 5
    built = build_model(workload)
    before = {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
    zero_classifier(built.model)
    session = Session(
        candidate=plan.candidate, built=built, device="cpu", recipe=plan.recipe,
        total_steps=STEPS,
    )  # fmt: skip
    batches: Iterator[Any] = iter(DataLoader(TensorDataset(images, labels), batch_size=MICRO_BATCH))
    losses = [session.run(batches) for _ in range(STEPS)]
    session.close()
    return {
        "plan": plan, "before": before, "images": images, "labels": labels, "losses": losses,
        "after": dict(built.model.state_dict()),
    }  # fmt: skip


def fresh_model(reference: dict[str, Any]) -> nn.Module:
    plan = reference["plan"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_backbone(plan, pretrained=False)
    model = apply_plan(loaded.model, plan)
    model.load_state_dict(reference["before"])
    return model.train()


def check(reference: dict[str, Any], model: nn.Module, losses: list[float]) -> None:
    assert losses == pytest.approx(reference["losses"], abs=1e-5)
    assert len(set(losses)) == STEPS  # it learned, so the comparison can fail
    after = model.state_dict()
    assert after.keys() == reference["after"].keys()
    for name, tensor in reference["after"].items():
        torch.testing.assert_close(after[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def loader(reference: dict[str, Any]) -> DataLoader[tuple[Tensor, Tensor]]:
    images = TensorDataset(reference["images"], reference["labels"])
    return DataLoader(images, batch_size=MICRO_BATCH)


def of_steps(losses: list[float]) -> list[float]:
    """Mean loss of each step, from the losses of its micro-batches."""
    pairs = zip(losses[::2], losses[1::2], strict=True)
    return [sum(pair) / ACCUMULATION for pair in pairs]


def test_the_script_trains_alike(reference: dict[str, Any]) -> None:
    from planner.export.scripts.train_script import Loop

    model = fresh_model(reference)
    loop = Loop(reference["plan"], model, total_steps=STEPS, new_classifier=True)
    batches = iter(loader(reference))
    losses = [loop.step([next(batches), next(batches)]) for _ in range(STEPS)]
    check(reference, model, losses)


def test_the_trainer_trains_alike(reference: dict[str, Any], tmp_path: Path) -> None:
    from transformers import TrainingArguments

    from planner.export.hf import PlanTrainer, WithLoss
    from planner.export.settings import hf_arguments

    plan, micro_losses = reference["plan"], []

    class InOrder(PlanTrainer):
        def get_train_dataloader(self) -> Any:
            pairs = zip(reference["images"], reference["labels"], strict=True)
            items = [{"pixel_values": x, "labels": y} for x, y in pairs]
            return DataLoader(items, batch_size=MICRO_BATCH)

        def compute_loss(self, *given: Any, **options: Any) -> Any:
            loss = super().compute_loss(*given, **options)
            micro_losses.append(float(loss.detach()))
            return loss

    options = hf_arguments(plan) | {
        "output_dir": str(tmp_path), "use_cpu": True, "eval_strategy": "no", "disable_tqdm": True,
        "save_strategy": "no", "load_best_model_at_end": False, "logging_strategy": "no",
    }  # fmt: skip
    model = fresh_model(reference)
    trainer = InOrder(plan, WithLoss(model, plan), args=TrainingArguments(**options))
    trainer.train()
    check(reference, model, of_steps(micro_losses))
    assert '"steps": 3' in (tmp_path / "budget.json").read_text()
    # an evaluation drops no image, also with fewer than one micro-batch
    for count in (3, 6):
        few = [{"labels": label} for label in reference["labels"][:count]]
        assert sum(len(batch["labels"]) for batch in trainer.get_eval_dataloader(few)) == count


@pytest.mark.filterwarnings("ignore")  # Lightning warns of few workers and of a missing logger
def test_lightning_trains_alike(reference: dict[str, Any], tmp_path: Path) -> None:
    import lightning

    from planner.export.lightning import BudgetCallback, PlanModule
    from planner.export.settings import lightning_config

    plan, micro_losses = reference["plan"], []

    class Recorded(PlanModule):
        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = super().training_step(batch, index)
            micro_losses.append(float(loss.detach()))
            return loss

    module = Recorded(plan, pretrained=False)
    module.model.load_state_dict(reference["before"])
    module._new_classifier = True
    settings = lightning_config(plan)["trainer"] | {
        "callbacks": [BudgetCallback(plan)], "default_root_dir": tmp_path, "accelerator": "cpu",
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "limit_val_batches": 0,
    }  # fmt: skip
    trainer = lightning.Trainer(**settings)
    trainer.fit(module, loader(reference))
    check(reference, module.model, of_steps(micro_losses))
    assert '"steps": 3' in (tmp_path / "budget.json").read_text()
