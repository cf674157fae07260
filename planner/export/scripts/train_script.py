"""Train plan.json in a plain PyTorch loop: python train.py [--data FOLDER] [--weights FILE].

Written by `budgetplan export`. It is yours to change; it needs budgetplan.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planner import apply_plan, load_backbone, load_images, load_plan, optimizer_and_schedule
from planner.plan import Plan
from planner.training.images.batches import batch_loader
from planner.training.own_loop import after_optimizer_step
from planner.training.training_device import cap_to_budget
from profiler.errors import BudgetplanError
from profiler.training_step import backend_settings

Batch = tuple[Tensor, Tensor]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Loop:
    """Model, optimizer and schedule of a plan.

    Args:
        plan: the plan.
        model: the model that ``apply_plan`` returned, on its device.
        total_steps: number of optimizer steps of the training.
        new_classifier: whether the classifier has random values.
    """

    def __init__(
        self, plan: Plan, model: nn.Module, *, total_steps: int, new_classifier: bool
    ) -> None:
        self.plan, self.model, self.steps = plan, model, 0
        self.workload, self.recipe = plan.candidate.workload, plan.require_recipe()
        self.device = next(model.parameters()).device
        self.forward = torch.compile(model) if "compile" in self.workload.levers else model
        self.optimizer, self.schedule = optimizer_and_schedule(
            model, plan, total_steps=total_steps, new_classifier=new_classifier
        )
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.workload.precision == "fp16"
        )

    def logits(self, images: Tensor) -> Tensor:
        """Return logits [batch, classes] of images [batch, 3, S, S]."""
        precision = self.workload.precision
        with torch.autocast(
            self.device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32"
        ):
            logits: Tensor = self.forward(images.to(self.device))
        return logits

    def step(self, batches: Sequence[Batch]) -> float:
        """Take one optimizer step on the micro-batches and return the mean loss."""
        total = 0.0
        with backend_settings(self.workload):
            for images, labels in batches:
                loss = F.cross_entropy(
                    self.logits(images).float(),
                    labels.to(self.device),
                    label_smoothing=self.recipe.label_smoothing,
                ) / len(batches)
                self.scaler.scale(loss).backward()
                total += float(loss.detach())
        if self.workload.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.workload.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        after_optimizer_step(self.model, self.plan, global_step=self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return total

    @torch.no_grad()
    def accuracy(self, batches: Iterator[Batch]) -> float:
        """Return the share of images that are classified correctly."""
        self.model.eval()
        right = [(self.logits(x).argmax(-1).cpu() == y) for x, y in batches]
        self.model.train()
        return float(torch.cat(right).float().mean())


def main() -> None:
    """Train, and save the weights of the epoch with the best selection accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with a sub-folder for each class")
    parser.add_argument("--weights", help="file of the backbone's weights")
    parser.add_argument("--no-pretrained", action="store_true", help="random weights")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, default=Path("trained.pt"))
    given = parser.parse_args()

    plan = load_plan(Path(__file__).with_name("plan.json"))
    workload, recipe = plan.candidate.workload, plan.require_recipe()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        cap_to_budget(plan)
    torch.manual_seed(0)
    images = load_images(plan, given.data)
    loaded = load_backbone(plan, weights=given.weights, pretrained=not given.no_pretrained)
    print(f"{loaded.weights.kind} weights: {loaded.weights.detail}")
    model = apply_plan(loaded.model.to(device), plan).train()
    epochs, steps = given.epochs or recipe.epochs, images.steps_per_epoch(workload)
    loop = Loop(plan, model, total_steps=epochs * steps, new_classifier=loaded.has_new_classifier)
    best = -1.0
    for epoch in range(epochs):
        batches = iter(
            batch_loader(
                images.train, batch_size=workload.micro_batch, shuffle=True, seed=0,
                drop_last=True, epoch=epoch, balance=recipe.balance,
            )
        )  # fmt: skip
        losses = [loop.step([next(batches) for _ in range(workload.accumulation)])
                  for _ in range(steps)]  # fmt: skip
        accuracy = loop.accuracy(
            iter(
                batch_loader(
                    images.monitor, batch_size=workload.micro_batch, shuffle=False, seed=0,
                    drop_last=False,
                )
            )
        )  # fmt: skip
        print(f"epoch {epoch + 1}: loss {sum(losses) / steps:.4f}, "
              f"{100 * accuracy:.1f} % of the {images.monitor_part} images right")  # fmt: skip
        if accuracy > best or not recipe.selects_epoch:
            best = accuracy
            torch.save(model.state_dict(), given.out)
    print(f"saved in {given.out}")
    model.load_state_dict(torch.load(given.out, weights_only=True))
    test = batch_loader(
        images.test, batch_size=workload.micro_batch, shuffle=False, seed=0, drop_last=False
    )
    print(f"{100 * loop.accuracy(iter(test)):.2f} % of the test images right")


if __name__ == "__main__":
    try:
        main()
    except BudgetplanError as error:
        raise SystemExit(f"train.py: {error}") from None
