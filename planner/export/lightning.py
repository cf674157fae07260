"""Train a plan with Lightning.

    PlanModule       the plan's model, loss, optimizer and schedule
    PlanData         the images of the plan's recipe
    BudgetCallback   watches memory; runs the hooks of the plan's method

Lightning differs from ``budgetplan train`` in this: it also takes a step on the last, incomplete
group of micro-batches of an epoch. On equal batches and weights the losses are equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F

from planner.export.budget_watch import BudgetWatch
from planner.plan import Plan, read_plan
from planner.training.apply import apply_plan
from planner.training.images.batches import batch_loader
from planner.training.own_loop import (
    after_optimizer_step,
    load_backbone,
    load_images,
    optimizer_and_schedule,
)

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from profiler.training_step import Batch


class PlanModule(lightning.LightningModule):  # type: ignore[misc]  # no types that mypy may follow
    """The model of a plan with its loss, optimizer and schedule.

    Args:
        plan: the plan, or the path of its file.
        weights: file of the backbone's weights; None for timm's pretrained weights.
        pretrained: whether to try to load timm's pretrained weights.
    """

    def __init__(
        self, plan: Plan | str, weights: str | None = None, pretrained: bool = True
    ) -> None:
        super().__init__()
        self.plan = _plan(plan)
        loaded = load_backbone(self.plan, weights=weights, pretrained=pretrained)
        self.model = apply_plan(loaded.model, self.plan)
        self._new_classifier = loaded.has_new_classifier
        self._smoothing = self.plan.require_recipe().label_smoothing

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, 3, S, S] to logits [batch, classes]."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a micro-batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self._smoothing)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the share of the held-out images that are classified correctly.

        They are the selection images, or the test images if the recipe selects no epoch.
        """
        images, labels = batch
        right = (self(images).argmax(-1) == labels).float().mean()
        self.log("held_out_accuracy", right, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer and the schedule of the plan's recipe."""
        optimizer, schedule = optimizer_and_schedule(
            self.model,
            self.plan,
            total_steps=int(self.trainer.estimated_stepping_batches),
            new_classifier=self._new_classifier,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class PlanData(lightning.LightningDataModule):  # type: ignore[misc]
    """The training and selection images of a plan.

    Args:
        plan: the plan, or the path of its file.
        data: name of a data set, or a folder; None for the plan's.
        seed: seed of the order of images.
    """

    def __init__(self, plan: Plan | str, data: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self._plan, self._data, self._seed = _plan(plan), data, seed

    def setup(self, stage: str) -> None:
        """Load the images."""
        self._images = load_images(self._plan, self._data)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training images, in another order in each epoch."""
        return batch_loader(
            self._images.train,
            batch_size=self._plan.candidate.workload.micro_batch,
            shuffle=True,
            seed=self._seed,
            drop_last=True,
            balance=self._plan.require_recipe().balance,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the selection images."""
        return batch_loader(
            self._images.monitor,
            batch_size=self._plan.candidate.workload.micro_batch,
            shuffle=False,
            seed=0,
            drop_last=False,
        )


class BudgetCallback(Callback):  # type: ignore[misc]
    """Caps and watches memory, and writes ``budget.json`` into the trainer's folder at the end.

    It also runs the hook of the plan's method after each optimizer step, and frees the gradients
    then. Lightning itself frees them after the next forward, where they would add to the peak.

    Args:
        plan: the plan, or the path of its file.
    """

    def __init__(self, plan: Plan | str) -> None:
        self._plan = _plan(plan)
        self._watch = BudgetWatch(self._plan)
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Set the cap."""
        self._steps = trainer.global_step
        self._watch.start(on_cuda=pl_module.device.type == "cuda")

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the beginning of a step at its first micro-batch."""
        self._watch.before_step()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Run the method's hook and free the gradients, if an optimizer step was taken."""
        if trainer.global_step == self._steps:
            return
        after_optimizer_step(
            getattr(pl_module, "model", pl_module), self._plan, global_step=self._steps
        )
        self._steps = trainer.global_step
        for optimizer in trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._watch.after_step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the record of memory and time."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "budget.json").write_text(json.dumps(self._watch.record(), indent=1) + "\n")


def _plan(plan: Plan | str) -> Plan:
    return plan if isinstance(plan, Plan) else read_plan(Path(plan))
