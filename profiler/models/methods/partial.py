"""Methods that train some or all parameters of the backbone and add none."""

from __future__ import annotations

from torch import nn

from profiler.models.checkpointable_units import find_blocks
from profiler.models.methods.base import Method
from profiler.models.methods.target_layers import BatchNorm, learn_only, norm_layers, parameters_of
from profiler.workload import Workload


class Full(Method):
    """Every parameter learns."""

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let every parameter learn."""
        return model.requires_grad_(requires_grad=True)


class Head(Method):
    """Linear probe: only the classifier learns; BatchNorm uses its pretrained statistics."""

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let only the classifier learn."""
        learn_only(model, set())
        return model


class BatchNormHead(Method):
    """The classifier and BatchNorm's affine weights and running statistics learn."""

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse backbones without BatchNorm."""
        if any(isinstance(module, BatchNorm) for module in model.modules()):
            return None
        return f"{type(model).__name__} has no BatchNorm layer; ln_tune trains LayerNorm"

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let BatchNorm and the classifier learn."""
        self.raise_refusal(model, workload)
        norms = [name for name, module in model.named_modules() if isinstance(module, BatchNorm)]
        learn_only(model, parameters_of(model, norms))
        return model


class BitFit(Method):
    """All biases learn.

    A bias is a parameter with "bias" in its name, as in the code of arXiv 2607.02158. This includes
    relative position biases, as does the published count for Swin-B (0.20 M, arXiv 2402.02242).
    """

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let all biases and the classifier learn."""
        learn_only(model, {name for name, _ in model.named_parameters() if "bias" in name})
        return model


class LnTune(Method):
    """Scale and shift of every normalisation layer learn, and BatchNorm's running statistics.

    peft's ``LN_TUNING`` trains a copy of each layer instead (``peft:ln_tuning``).
    """

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse backbones without normalisation layers."""
        return None if norm_layers(model) else f"{type(model).__name__} has no normalisation layer"

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let normalisation layers and the classifier learn."""
        self.raise_refusal(model, workload)
        learn_only(model, parameters_of(model, norm_layers(model)))
        return model


class PartialK(Method):
    """The last k units learn, and every parameter after them (final norm, classifier).

    ``partial_k`` takes k from the rank; ``partial_3`` has k = 3. Units before them save nothing for
    backward. VPT's code trains the parameters after the units too ("partial-1").
    """

    def units_to_train(self, workload: Workload) -> int:
        """Return k."""
        fixed = self.name.removeprefix("partial_")
        return int(fixed) if fixed.isdigit() else self.rank(workload)

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse a k above the number of units."""
        units = find_blocks(model)
        wanted = self.units_to_train(workload)
        if wanted <= len(units):
            return None
        return f"{type(model).__name__} has {len(units)} units, got k = {wanted}"

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let the last units and all parameters after them learn."""
        self.raise_refusal(model, workload)
        first = find_blocks(model)[-self.units_to_train(workload)] + "."
        names = [name for name, _ in model.named_parameters()]
        start = next(i for i, name in enumerate(names) if name.startswith(first))
        learn_only(model, set(names[start:]))
        return model
