"""The interface of a fine-tuning method. One object is replayed, measured and trained.

A method changes a backbone so that the right parameters learn. It must work on parameters on the
``meta`` device (the profiler allocates no weights), on fake tensors and on real ones, and it
creates its own parameters on the device of the weights.

This module imports no torch, because commands that show names and summaries need none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """Description of a method, available without torch.

    Attributes:
        name: name on the command line.
        family: class of the survey arXiv 2402.02242 (``baseline``, ``addition``, ``partial``,
            ``reparameter``), or ``quantised``, ``optimizer``.
        summary: one line for ``budgetplan methods``.
        source: publication that the method comes from.
        implementation: ``module:Class`` inside ``profiler.models.methods``.
        default_rank: rank if none is given; None for methods without a rank.
        rank_means: quantity that the rank counts ("bottleneck width", "prompt tokens", ...).
    """

    name: str
    family: str
    summary: str
    source: str
    implementation: str
    default_rank: int | None = None
    rank_means: str = "rank"


class Method(ABC):
    """A way to make a backbone trainable. Methods have no state; all state is in the model.

    Args:
        info: the method's entry in the registry.
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
        """Return why this method cannot be used on this backbone; None if it can."""
        return None

    def raise_refusal(self, model: nn.Module, workload: Workload) -> None:
        """Raise the error of ``apply`` if the method cannot be used on this backbone."""
        reason = self.refusal(model, workload)
        if reason is not None:
            raise UsageError(f"method {self.name} is not possible here: {reason}")

    def notes(self, model: nn.Module, workload: Workload) -> list[str]:
        """Return remarks for the user about this method on this backbone, one sentence each."""
        return []

    @abstractmethod
    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Make the backbone trainable; return the model to train: the backbone or peft's wrapper.

        ``requires_grad`` is set on exactly the parameters that learn. The classifier always
        learns. ``backbone_of`` finds the backbone inside a wrapper.

        Args:
            model: a bare backbone; it is changed in place.
            workload: gives rank, alpha, dropout, targets and precision.

        Raises:
            UsageError: the method cannot be used on this backbone, or a target matches no layer.
        """

    def make_optimizer(
        self,
        groups: Sequence[dict[str, Any]],
        workload: Workload,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> Optimizer | None:
        """Return the method's own optimizer; None if it uses the workload's.

        Args:
            groups: the trainable parameters, as PyTorch's optimizers take them.
            workload: gives rank and optimizer.
            learning_rate: rate of groups without one.
            weight_decay: decay of groups without one.
        """
        return None

    def on_training_start(self, model: nn.Module, *, total_steps: int) -> None:
        """Fit schedules to the length of the training (AdaLoRA's ranks)."""
        return None

    def before_zero_grad(self, model: nn.Module, *, global_step: int) -> None:
        """Run after the optimizer step, before gradients are freed (AdaLoRA's rank allocator)."""
        return None

    def training_state(self, model: nn.Module) -> dict[str, object]:
        """Return the state of a schedule between steps, as tensors and plain data.

        Parameters, buffers and the optimizer's state are not included: the training saves them.
        """
        return {}

    def restore_training_state(self, model: nn.Module, state: dict[str, object]) -> None:
        """Restore the result of ``training_state``; called after ``on_training_start``."""
        return None

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the trained tensors (peft's format for peft methods, else safetensors)."""
        from profiler.models.methods.save_load import save_trained_tensors

        save_trained_tensors(model, directory, method=self.name)

    def load(self, model: nn.Module, directory: Path) -> None:
        """Load trained tensors into a model that ``apply`` prepared with the same workload.

        Raises:
            InputError: the files are missing, damaged, or of another method or model.
        """
        from profiler.models.methods.save_load import load_trained_tensors

        load_trained_tensors(model, directory, method=self.name)


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the backbone inside a model, with its own module names; peft wraps it."""
    unwrap = getattr(model, "get_base_model", None)
    inner: nn.Module = unwrap() if callable(unwrap) else model
    return inner
