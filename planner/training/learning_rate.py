"""The learning rate of a training, chosen by method, weights and optimizer, with a reason.

The defaults of arXiv 2607.02158 (``profiler.training_step.default_learning_rate``) are for
pretrained weights. At its 1e-5 for full fine-tuning, random weights learn nothing in a few epochs,
so random weights get the larger rates below and a linear warm-up. The comparisons below were made
on digits at 64 px with AdamW at 32 images per step; percentages are held-out accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from profiler.errors import UsageError
from profiler.models.build import BuiltModel
from profiler.training_step import default_learning_rate
from profiler.workload import Workload

RANDOM_WEIGHTS_RATE, RANDOM_WEIGHTS_BATCH = 5e-4, 512
"""AdamW's rate, and its batch, for full training of random weights: DeiT's (arXiv 2012.12877).

It is scaled to other batches by the square root, as Adam's is (arXiv 2205.10287). After 44 steps
ViT-S reached 47 % at 1e-4, 33 % at 5e-4 and 11 % at 1e-3.
"""

WITHOUT_LAYER_NORM_RATE = 1e-3
"""AdamW's rate for full training of random weights without LayerNorm: Adam's own (1412.6980).

After 44 steps ResNet-18 reached 87 % at this rate and 54 % at 1e-4.
"""

ADDITION_RATE = 2e-3
"""AdamW's rate on random weights for methods that only add modules (``ADDITION_METHODS``).

After 88 steps ViT-S reached, at this rate and at the paper's 5e-4: head 46 and 36 %, side tuning
55 and 36 %, AdaptFormer 62 and 37 %, prefix 46 and 35 %. Methods that change the backbone's weights
do not gain: BitFit 38 and 41 %, SSF 43 and 43 %, LoRA 16 and 57 % (44 steps).
"""

ADDITION_METHODS = frozenset({"head", "adaptformer", "prefix", "side"})

RATE_WARM_UP_STEPS = 10
"""Steps of linear warm-up with random weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A learning rate and the reason for it.

    Attributes:
        value: rate after the warm-up.
        warm_up_steps: number of steps over which the rate rises linearly; 0 for none.
        reason: reason for the value, as one clause.
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
    """Return the learning rate to train with.

    Args:
        workload: method, optimizer and batch.
        built: the model, for the origin of its weights.
        given: the user's rate, which is used without warm-up; None to choose one.

    Raises:
        UsageError: the user's rate is not a positive number.
    """
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise UsageError(f"the learning rate must be a positive number, got {given!r}")
        return LearningRate(value=given, warm_up_steps=0, reason="as given, constant")
    paper_rate, kind = default_learning_rate(workload), built.weights.kind
    if kind != "random":
        reason = f"default of arXiv 2607.02158 for {kind} weights, constant"
        return LearningRate(value=paper_rate, warm_up_steps=0, reason=reason)
    sgd_factor = 10 if workload.optimizer == "sgd" else 1
    if workload.method in ADDITION_METHODS:
        value, reason = ADDITION_RATE * sgd_factor, "for modules added to random weights"
    elif workload.method == "full":
        value = _full_training_rate(workload, built) * sgd_factor
        reason = "for full training of random weights"
    else:
        value, reason = paper_rate, "default of arXiv 2607.02158 on random weights"
    return LearningRate(
        value=value,
        warm_up_steps=RATE_WARM_UP_STEPS,
        reason=f"{reason}; {RATE_WARM_UP_STEPS} steps of warm-up, then constant",
    )


def _full_training_rate(workload: Workload, built: BuiltModel) -> float:
    """Return AdamW's rate for full training of random weights."""
    if not any(isinstance(module, torch.nn.LayerNorm) for module in built.backbone.modules()):
        return WITHOUT_LAYER_NORM_RATE
    return RANDOM_WEIGHTS_RATE * math.sqrt(workload.effective_batch / RANDOM_WEIGHTS_BATCH)
