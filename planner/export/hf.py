"""Train a plan with the Trainer of Hugging Face's transformers.

    WithLoss         the plan's model in the form that the Trainer expects
    PlanTrainer      Trainer with the optimizer and the schedule of the plan
    BudgetCallback   watches memory; runs the hooks of the plan's method
    as_dataset       an image set as a data set of dictionaries

The Trainer differs from ``budgetplan train`` in this: it also takes a step on the last, incomplete
group of micro-batches of an epoch, and its order of images is its own. On equal batches and weights
the losses are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback

from planner.export.budget_watch import BudgetWatch
from planner.plan import Plan, read_plan
from planner.training.own_loop import (
    after_optimizer_step,
    optimizer_without_schedule,
    schedule_of,
)

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from planner.training.images.image_set import ImageSet


class WithLoss(nn.Module):
    """A model and its loss.

    Args:
        model: the model that ``apply_plan`` returned; images [batch, 3, S, S] to logits.
        plan: the plan, for its label smoothing.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.model = model
        self._smoothing = plan.require_recipe().label_smoothing

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return logits [batch, classes], and the loss if there are labels [batch]."""
        logits = self.model(pixel_values)
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        return {"loss": loss, "logits": logits}


class PlanTrainer(Trainer):  # type: ignore[misc]  # transformers has no types that mypy may follow
    """A Trainer with the optimizer and the learning-rate schedule of a plan.

    Args:
        plan: the plan.
        model: the model with its loss.
        new_classifier: whether the classifier has random values (``load_backbone`` knows).
        options: arguments of ``Trainer``.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self, plan: Plan, model: WithLoss, *, new_classifier: bool = True, **options: Any
    ) -> None:
        super().__init__(model=model, **options)
        self.plan, self._new_classifier = plan, new_classifier
        self.add_callback(BudgetCallback(plan))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the loader of an evaluation; unlike in training, the last batch is kept."""
        images = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(images, batch_size=self.args.eval_batch_size)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the loader of a test."""
        return self.get_eval_dataloader(test_dataset)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Make the optimizer of the plan's recipe, once."""
        if self.optimizer is None:
            self.optimizer = optimizer_without_schedule(
                self.model.model, self.plan, new_classifier=self._new_classifier
            )
        made: Optimizer = self.optimizer
        return made

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LambdaLR:
        """Make the schedule for the number of steps that the Trainer will take."""
        if self.lr_scheduler is None:
            self.lr_scheduler = schedule_of(
                optimizer or self.optimizer,
                self.model.model,
                self.plan,
                total_steps=num_training_steps,
            )
            self._created_lr_scheduler = True  # a second training makes its own
        made: LambdaLR = self.lr_scheduler
        return made


class BudgetCallback(TrainerCallback):  # type: ignore[misc]
    """Caps and watches memory, and writes ``budget.json`` into the output folder at the end.

    It also runs the hook of the plan's method after each optimizer step.

    Args:
        plan: the plan, or the path of its file.
    """

    def __init__(self, plan: Plan | str | Path) -> None:
        self._plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
        self._watch = BudgetWatch(self._plan)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the cap."""
        self._watch.start(on_cuda=args.device.type == "cuda")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the beginning of a step."""
        self._watch.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Run the method's hook while the gradients are there."""
        model = given["model"]
        inner = getattr(model, "model", model)
        after_optimizer_step(inner, self._plan, global_step=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare the memory with the budget."""
        self._watch.after_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the record of memory and time."""
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "budget.json").write_text(json.dumps(self._watch.record(), indent=1) + "\n")


class _DictDataset(Dataset[Mapping[str, Any]]):
    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        # the draw decides the random crop; a new one each time, from torch's generator
        image, label = self._images[index, int(torch.randint(2**31, ()))]
        return {"pixel_values": image, "labels": label}


def as_dataset(images: ImageSet) -> Dataset[Mapping[str, Any]]:
    """Return images as a data set of ``pixel_values`` [3, S, S] and ``labels``."""
    return _DictDataset(images)


def accuracy(prediction: Any) -> dict[str, float]:
    """Return the accuracy of an evaluation, for ``compute_metrics``."""
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}
