"""What every fine-tuning method offers; the same object is replayed, measured and trained.

A method changes a backbone so that the right parameters learn. It must work on a model whose
parameters live on the ``meta`` device (the profiler allocates no weight) as well as on a real one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from profiler.workload import Workload


class Method(ABC):
    """One way of making a backbone trainable.

    Attributes:
        name: what the user writes.
        family: the survey's class (arXiv 2402.02242): ``baseline``, ``addition``, ``partial``,
            ``reparameter``, ``quantised``, ``optimizer``.
        summary: one line for ``budgetplan methods``.
        source: where the method comes from.
        default_rank: the rank when none is given; None for methods without one.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    default_rank: ClassVar[int | None] = None

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Say why this method cannot be used on this backbone, or None when it can."""
        return None

    @abstractmethod
    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Make the model trainable by this method and return what is to be called.

        ``requires_grad`` is set on exactly the parameters that learn. The classifier always
        learns. May return a wrapper (peft); ``backbone_of`` finds the backbone inside it.
        """

    def make_optimizer(
        self, model: nn.Module, workload: Workload, *, foreach: bool
    ) -> Optimizer | None:
        """Return the method's own optimizer, or None for the workload's ordinary one."""
        return None

    def on_training_start(self, model: nn.Module, *, total_steps: int) -> None:
        """Prepare schedules that need the length of the training (AdaLoRA's ranks)."""
        return None

    def before_zero_grad(self, model: nn.Module, *, global_step: int) -> None:
        """Run after the optimizer step while gradients are still there (AdaLoRA's allocator)."""
        return None

    @abstractmethod
    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what was learned (peft format for peft methods, safetensors otherwise)."""

    @abstractmethod
    def load(self, model: nn.Module, directory: Path) -> None:
        """Load what ``save`` wrote into a model that ``apply`` prepared the same way."""


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the backbone inside whatever a method returned, with its own module names."""
    unwrap = getattr(model, "get_base_model", None)
    inner: nn.Module = unwrap() if callable(unwrap) else model
    return inner
