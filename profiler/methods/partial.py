"""Methods that train part of the backbone as it stands and add nothing."""

from __future__ import annotations

from torch import nn

from profiler.methods.anatomy import BatchNorm, learn_only
from profiler.methods.base import Method
from profiler.workload import Workload


class Full(Method):
    """Every parameter learns."""

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let everything learn."""
        return model.requires_grad_(requires_grad=True)


class Head(Method):
    """The classic linear probe: the backbone is a fixed function, statistics included."""

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let only the classifier learn."""
        learn_only(model, set())
        return model


class BatchNormHead(Method):
    """BatchNorm's affine weights and running statistics learn, and the classifier."""

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse backbones without BatchNorm."""
        if any(isinstance(module, BatchNorm) for module in model.modules()):
            return None
        return f"{type(model).__name__} has no BatchNorm layer; ln_tune trains LayerNorm"

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let BatchNorm and the classifier learn."""
        self.raise_refusal(model, workload)
        norms = [name for name, module in model.named_modules() if isinstance(module, BatchNorm)]
        learn_only(model, _parameters_of(model, norms))
        return model


class BitFit(Method):
    """All biases learn.

    A bias is a parameter with "bias" in its name, as in the code of arXiv 2607.02158. That takes
    relative position biases in, as the published count for Swin-B does (0.20 M, arXiv 2402.02242).
    """

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let biases and the classifier learn."""
        learn_only(model, {name for name, _ in model.named_parameters() if "bias" in name})
        return model


def _parameters_of(model: nn.Module, modules: list[str]) -> set[str]:
    return {
        f"{name}.{key}" if name else key
        for name in modules
        for key, _ in model.get_submodule(name).named_parameters()
    }
