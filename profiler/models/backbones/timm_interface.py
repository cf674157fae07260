"""What every backbone has through timm: constructor, classifier, image statistics, input size.

The functions read ``get_classifier`` and ``pretrained_cfg`` of a model. Importing this module
imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from profiler.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

IMAGE_SIZE = 224
"""Edge of the input in pixels where a model states none: that of ImageNet training."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def create_model(name: str, **options: object) -> nn.Module:
    """Call timm's constructor of a model, on the device of the context.

    The constructor of RegNet in timm 1.0.21 computes widths with tensors on that device, which have
    no values if it is ``meta``. Tensors of numbers are then kept on the CPU.
    """
    import timm
    import torch
    from torch.overrides import TorchFunctionMode

    class NumbersOnCpu(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            numbers = {"device": "cpu"} if func in {torch.tensor, torch.arange} else {}
            return func(*args, **numbers | (kwargs or {}))

    try:
        model: nn.Module = timm.create_model(name, **options)
    except NotImplementedError:
        with NumbersOnCpu():
            model = timm.create_model(name, **options)
    return model


def attention_level() -> int:
    """Return timm's level of fused attention: 0 off, 1 on, 2 on for layers under test as well.

    ``timm.layers.set_fused_attn`` changes it. A model reads it once, when it is constructed.
    """
    from timm.layers import use_fused_attn

    return int(use_fused_attn()) + int(use_fused_attn(experimental=True))


def classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the classifier's modules: two for models with a distillation head, maybe none."""
    getter = getattr(model, "get_classifier", None)
    found = getter() if callable(getter) else None
    if isinstance(found, tuple | list):
        return tuple(found)
    return () if found is None else (found,)


def classifier_names(model: nn.Module) -> list[str]:
    """Return the module names of the classifier (``head``, ``fc``, ``head.fc``, ...).

    Raises:
        UsageError: the model has no classifier.
    """
    heads = {id(head) for head in classifiers(model)}
    names = [name for name, module in model.named_modules() if id(module) in heads]
    if not names:
        raise UsageError(f"{type(model).__name__} has no classifier that could be trained")
    return names


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a model has a BatchNorm layer."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) for module in model.modules())


def image_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation per channel that the backbone expects."""
    config = _config(model)
    return tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))


def run_on_meta(model: nn.Module) -> object:
    """Run a model's forward on shapes alone, at the image size it was trained at.

    Raises:
        Exception: the forward needs values, or images of another size.
    """
    import torch
    from torch.func import functional_call

    _, height, width = _config(model).get("input_size", (3, IMAGE_SIZE, IMAGE_SIZE))
    # One name for each module and tensor in it, and no ties: functional_call replaces a tensor once
    # for each tied name, and of a module with two names it would restore the replaced tensor.
    shapes = {
        f"{name}.{key}" if name else key: torch.empty_like(tensor, device="meta")
        for name, module in model.named_modules()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    # In training mode BatchNorm refuses one value per channel, so the batch has two images.
    images = torch.empty(2, 3, height, width, device="meta")
    return functional_call(model, shapes, images, tie_weights=False)


def _config(model: nn.Module) -> Mapping[str, Any]:
    return getattr(model, "pretrained_cfg", None) or {}
