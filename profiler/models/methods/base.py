"""What every fine-tuning method offers; the same object is replayed, measured and trained.

A method changes a backbone so that the right parameters learn. It must work on a model whose
parameters live on the ``meta`` device (the profiler allocates no weight), on fake tensors, and on
a real one: whatever it creates lies where the weights lie.

No torch at the top: names and summaries are shown by commands that need none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.errors import UsageError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from profiler.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """What can be said of a method without importing torch.

    Attributes:
        name: what the user writes.
        family: the survey's class (arXiv 2402.02242): ``baseline``, ``addition``, ``partial``,
            ``reparameter``; or ``quantised``, ``optimizer``.
        summary: one line for ``budgetplan methods``.
        source: where the method comes from.
        implementation: ``module:Class`` inside ``profiler.models.methods``.
        default_rank: the rank when none is given; None for methods without one.
        rank_means: what ``rank`` counts here ("rank", "bottleneck width", "prompt tokens", ...).
    """

    name: str
    family: str
    summary: str
    source: str
    implementation: str
    default_rank: int | None = None
    rank_means: str = "rank"


class Method(ABC):
    """One way of making a backbone trainable. Methods keep no state: the model does.

    Args:
        info: the method's entry of the catalogue.
    """

    def __init__(self, info: MethodInfo) -> None:
        self.info = info
        self.name = info.name
        self.family = info.family
        self.summary = info.summary
        self.source = info.source
        self.default_rank = info.default_rank

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def resolve(self, workload: Workload) -> Workload:
        """Return the workload with this method's default rank filled in.

        Raises:
            UsageError: a rank was given to a method that has none.
        """
        if workload.rank is not None and self.default_rank is None:
            raise UsageError(
                f"method {self.name} has no rank, got rank {workload.rank}; leave the rank out"
            )
        if workload.rank is None and self.default_rank is not None:
            return workload.replace(rank=self.default_rank)
        return workload

    def rank(self, workload: Workload) -> int:
        """Return the workload's rank or this method's default."""
        rank = workload.rank if workload.rank is not None else self.default_rank
        assert rank is not None, f"{self.name} has no rank"
        return rank

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Say why this method cannot be used on this backbone, or None when it can."""
        return None

    def raise_refusal(self, model: nn.Module, workload: Workload) -> None:
        """Raise a refusal as the error ``apply`` promises."""
        reason = self.refusal(model, workload)
        if reason is not None:
            raise UsageError(f"method {self.name} is not possible here: {reason}")

    def notes(self, model: nn.Module, workload: Workload) -> list[str]:
        """Return what a user should know of this method on this backbone, a sentence each."""
        return []

    @abstractmethod
    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Make the model trainable by this method and return what is to be called.

        ``requires_grad`` is set on exactly the parameters that learn. The classifier always
        learns. May return a wrapper (peft); ``backbone_of`` finds the backbone inside it.

        Raises:
            UsageError: the method cannot be used on this backbone, or a target matches nothing.
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

    def training_state(self, model: nn.Module) -> dict[str, Any]:
        """Return what a schedule carries from step to step, as tensors and plain data.

        Parameters, buffers and the optimizer's state are the trainer's business.
        """
        return {}

    def restore_training_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Take back what ``training_state`` returned, after ``on_training_start``."""
        return None

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what was learned (peft format for peft methods, safetensors otherwise)."""
        from profiler.models.methods.save_load import save_trained_tensors

        save_trained_tensors(model, directory, method=self.name)

    def load(self, model: nn.Module, directory: Path) -> None:
        """Load what ``save`` wrote into a model that ``apply`` prepared the same way.

        Raises:
            InputError: the directory holds something else.
        """
        from profiler.models.methods.save_load import load_trained_tensors

        load_trained_tensors(model, directory, method=self.name)


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the backbone inside whatever a method returned, with its own module names."""
    unwrap = getattr(model, "get_base_model", None)
    inner: nn.Module = unwrap() if callable(unwrap) else model
    return inner
