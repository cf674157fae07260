"""The recipe of a training: learning rates, schedule, length, selection, augmentation.

A plan holds its recipe, with every value resolved and the source of the values, and training uses
nothing else. ``planner.training.choose_recipe`` makes one. This module imports no torch, because
commands that read a plan need no model.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from profiler.errors import InputError

Schedule = Literal["cosine", "constant"]

InitialWeights = Literal["pretrained", "random"]

Share = Annotated[float, Meta(gt=0, le=1)]

Smoothing = Annotated[float, Meta(ge=0, lt=1)]

Ratio = Annotated[float, Meta(gt=0, le=1000)]

Decay = Annotated[float, Meta(ge=0, le=10)]

Steps = Annotated[int, Meta(ge=0, le=10**9)]

LARGEST_EPOCHS = 100_000

Epochs = Annotated[int, Meta(ge=1, le=LARGEST_EPOCHS)]

LARGEST_RATE = 100.0
"""Upper bound of a learning rate; SGD's largest published rates are below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Attributes:
        learning_rate: rate of the optimizer after the warm-up.
        head_rate_ratio: learning rate of the classifier over that of the other parameters.
        layer_decay: ratio of the learning rates of a layer and the layer after it, as in BEiT
            (arXiv 2106.08254); 1 for the same rate in all layers.
        schedule: ``cosine`` falls to 0 over the steps of the training; ``constant`` stays.
        warm_up_steps: steps over which the rate rises linearly.
        weight_decay: decay of the weights; SGD has none.
        decay_norms_and_biases: whether it applies to norms and biases too.
        label_smoothing: smoothing of the cross entropy.
        zero_head: whether a new classifier starts at zero, not at the backbone's random values.
        epochs: number of epochs.
        patience_epochs: epochs without a higher selection accuracy after which the training
            stops; None to train all epochs.
        selects_epoch: whether images are set apart to select the epoch whose weights are saved;
            otherwise the selection images that were taken out of the training images are trained on
            too, and the last epoch is saved.
        augment: whether training images are cropped at random and mirrored, where the data set
            allows it.
        balance: whether each class is drawn equally often.
        weights: weights that the recipe is meant for.
        source: origin of the values, as one sentence.
    """

    learning_rate: Annotated[float, Meta(gt=0, le=LARGEST_RATE)]
    head_rate_ratio: Ratio = 1.0
    layer_decay: Share = 1.0
    schedule: Schedule = "cosine"
    warm_up_steps: Steps = 0
    weight_decay: Decay = 0.0
    decay_norms_and_biases: bool = False
    label_smoothing: Smoothing = 0.0
    zero_head: bool = False
    epochs: Epochs
    patience_epochs: Epochs | None = None
    selects_epoch: bool = True
    augment: bool = True
    balance: bool = False
    weights: InitialWeights = "pretrained"
    source: str

    def __post_init__(self) -> None:
        if self.patience_epochs is not None and not self.selects_epoch:
            raise InputError(
                "a recipe stops early by its selection accuracy; set selects_epoch, or leave "
                "patience_epochs out"
            )

    def steps(self, train_images: int, *, effective_batch: int) -> int:
        """Return the optimizer steps of the whole training.

        An epoch leaves its last, incomplete step out. One step at least is counted.

        Args:
            train_images: number of images that an epoch trains on; selection images that were taken
                out of the training images are among them if no epoch is selected.
            effective_batch: images of a step.
        """
        return self.epochs * max(1, train_images // effective_batch)

    def warm_up_within(self, *, total_steps: int) -> int:
        """Return the steps of the warm-up in a training of a length.

        With a cosine, a training that was made shorter has a shorter warm-up too.
        """
        if self.schedule == "constant":
            return self.warm_up_steps
        return min(self.warm_up_steps, int(WARM_UP_SHARE * total_steps))

    def rate_factor(self, step: int, *, total_steps: int) -> float:
        """Return the factor of the learning rate at a step, in (0, 1].

        Args:
            step: number of the step, from 0.
            total_steps: steps of the whole training.
        """
        warm_up_steps = self.warm_up_within(total_steps=total_steps)
        warm_up = min(1.0, (step + 1) / (warm_up_steps + 1))
        if self.schedule == "constant":
            return warm_up
        falling = max(1, total_steps - warm_up_steps)
        done = min(1.0, max(0, step - warm_up_steps) / falling)
        return warm_up * max(0.5 * (1 + math.cos(math.pi * done)), LAST_RATE_FACTOR)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the plan file."""
        return asdict(self)

    def describe(self) -> str:
        """Return the rate, the schedule and the length in one line."""
        parts = [f"lr {self.learning_rate:g}"]
        if self.head_rate_ratio != 1:
            parts.append(f"{self.head_rate_ratio:g} times that for the classifier")
        if self.layer_decay != 1:
            parts.append(f"layer decay {self.layer_decay:g}")
        warm_up = f" after {self.warm_up_steps} steps of warm-up" if self.warm_up_steps else ""
        parts.append(f"{self.schedule}{warm_up}")
        parts.append(f"{self.epochs} epoch{'s' * (self.epochs > 1)}")
        return ", ".join(parts)


WARM_UP_SHARE = 0.1
"""Largest share of a training with a cosine schedule that the warm-up takes."""

LAST_RATE_FACTOR = 1e-3
"""Smallest factor of the cosine schedule, so that steps after a planned end still learn."""
