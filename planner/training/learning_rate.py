"""The learning rate of a training, by method, weights and optimizer, with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from profiler.errors import (
    UsageError,
)
from profiler.models.build import BuiltModel
from profiler.training_step import (
    default_learning_rate,
)
from profiler.workload import Workload

if TYPE_CHECKING:
    pass

RANDOM_WEIGHTS_RATE, RANDOM_WEIGHTS_BATCH = 5e-4, 512
"""AdamW's rate for training everything from random weights: DeiT's (2012.12877), scaled from its
batch by the square root, as Adam's is (2205.10287). On digits, 64 px, 44 steps of 32 images, ViT-S
got 47 % right at 1e-4, 33 % at 5e-4 and 11 % at 1e-3."""

BATCH_NORM_RATE = 1e-3
"""The same for a network without LayerNorm: Adam's own (1412.6980). ResNet-18 got 87 % right at
this rate and 54 % at 1e-4, all else as above."""

ADDED_RATE = 2e-3
"""AdamW's rate with random weights for what leaves the backbone's own parameters alone. On digits,
64 px, 88 steps of 32 images, ViT-S, against the paper's 5e-4: head 46 and 36 % right, side tuning
55 and 36 %, AdaptFormer 62 and 37 %, prefix 46 and 35 %. Where they change it gains nothing: BitFit
38 and 41 %, SSF 43 and 43 %, LoRA 16 and 57 % (44 steps)."""

BESIDE_THE_WEIGHTS = frozenset({"head", "adaptformer", "prefix", "side"})

WARM_UP_STEPS = 10
"""Steps of linear warm-up with random weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A learning rate and why it is that.

    Attributes:
        value: after warm-up.
        warm_up_steps: over which it rises linearly; 0 for none.
        reason: one clause.
    """

    value: float
    warm_up_steps: int
    reason: str

    def at(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        return self.value * min(1.0, (step + 1) / (self.warm_up_steps + 1))


def choose_learning_rate(
    workload: Workload, built: BuiltModel, *, given: float | None = None
) -> LearningRate:
    """Return the rate to train with.

    The paper's defaults (``profiler.training_step.default_learning_rate``) are for pretrained weights: at
    1e-5, random weights learn nothing in a few epochs. Its 5e-4 is kept for what changes the
    weights; on digits as above, LoRA got 57 % at it, 42 % at 1e-4 and 16 % at 2e-3.
    """
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise UsageError(f"the learning rate must be a positive number, got {given!r}")
        return LearningRate(value=given, warm_up_steps=0, reason="as given, constant")
    usual, kind = default_learning_rate(workload), built.weights.kind
    if kind != "random":
        reason = f"arXiv 2607.02158's for {kind} weights, constant"
        return LearningRate(value=usual, warm_up_steps=0, reason=reason)
    warm_up = f"{WARM_UP_STEPS} steps of warm-up, then constant"
    by_sgd = 10 if workload.optimizer == "sgd" else 1
    if workload.method in BESIDE_THE_WEIGHTS:
        reason = f"for what is added to random weights; {warm_up}"
        return LearningRate(value=ADDED_RATE * by_sgd, warm_up_steps=WARM_UP_STEPS, reason=reason)
    if workload.method != "full":
        reason = f"arXiv 2607.02158's, {warm_up} because the weights are random"
        return LearningRate(value=usual, warm_up_steps=WARM_UP_STEPS, reason=reason)
    rate = _from_scratch_rate(workload, built) * by_sgd
    reason = f"for training everything from random weights; {warm_up}"
    return LearningRate(value=rate, warm_up_steps=WARM_UP_STEPS, reason=reason)


def _from_scratch_rate(workload: Workload, built: BuiltModel) -> float:
    """Return AdamW's rate for training everything from random weights."""
    if not any(isinstance(module, torch.nn.LayerNorm) for module in built.backbone.modules()):
        return BATCH_NORM_RATE
    return RANDOM_WEIGHTS_RATE * math.sqrt(workload.effective_batch / RANDOM_WEIGHTS_BATCH)
