"""The layers of a backbone that a method adapts, trains or quantises.

Default targets of ViT, Vim and MambaVision are those of the authors' code of arXiv 2607.02158
(github.com/JokerOneK/cifar100_vits16_repro @165ba922, src/train_*.py). For every other backbone
they are all linear layers or all ungrouped convolutions, whichever hold more parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from profiler.errors import UsageError
from profiler.models.backbones.timm_interface import classifier_names

BatchNorm = nn.modules.batchnorm._BatchNorm


def learn_only(model: nn.Module, names: set[str]) -> None:
    """Let exactly these parameters and the classifier learn.

    If no parameter of a BatchNorm layer learns, its running statistics are frozen too. The saved
    tensors (``save_load``) then reproduce the outputs on a fresh backbone.
    """
    heads = tuple(f"{name}." for name in classifier_names(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names or name.startswith(heads))
    freeze_statistics(model)


def freeze_statistics(model: nn.Module, *, also_trained: bool = False) -> None:
    """Keep BatchNorm layers in evaluation mode permanently.

    Args:
        model: model that holds the layers.
        also_trained: whether layers with trainable parameters are included.
    """
    for module in model.modules():
        if not isinstance(module, BatchNorm):
            continue
        if also_trained or not any(p.requires_grad for p in module.parameters()):
            module.train(False)
            # A later model.train() must not switch the layer back.
            module.train = _stay.__get__(module)  # type: ignore[method-assign]


def _stay(self: nn.Module, mode: bool = True) -> nn.Module:
    return self


def norm_layers(model: nn.Module) -> list[str]:
    """Return the names of the normalisation layers with weights; classes are matched by name."""
    return [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and "weight" in module._parameters
    ]


def parameters_of(model: nn.Module, modules: Iterable[str]) -> set[str]:
    """Return the names of all parameters inside some modules."""
    return {
        f"{name}.{key}" if name else key
        for name in modules
        for key, _ in model.get_submodule(name).named_parameters()
    }


@contextmanager
def where_weights_are(model: nn.Module) -> Iterator[None]:
    """Create tensors on the device of the weights inside the context; fake if the weights are."""
    weight = next(model.parameters())
    fake = weight.data if isinstance(weight.data, FakeTensor) else None
    with fake.fake_mode if fake is not None else nullcontext(), torch.device(weight.device):
        yield


def has_values(model: nn.Module) -> bool:
    """Return whether the weights have values: they are neither on ``meta`` nor fake."""
    weight = next(model.parameters())
    return not (weight.is_meta or isinstance(weight.data, FakeTensor))


@contextmanager
def on_meta_if_fake(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Replace fake weights by ``meta`` ones inside the context, then make them fake again.

    peft copies and moves modules, which fake tensors do not support. Yields a list: the caller
    appends the wrapper around the model, whose weights are made fake at the end.
    """
    weight = next(model.parameters())
    outermost = [model]
    if not isinstance(weight.data, FakeTensor):
        yield outermost
        return
    mode, device = weight.data.fake_mode, weight.device
    _remake(model, device=torch.device("meta"))
    yield outermost
    with mode:
        _remake(outermost[-1], device=device)


def _remake(model: nn.Module, *, device: torch.device) -> None:
    """Replace every tensor of a model by an empty one on a device; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype, device=device)
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = new
                table[name] = made[id(old)]  # type: ignore[assignment]


def target_modules(model: nn.Module, targets: tuple[str, ...] | None) -> list[str]:
    """Return the full names of the layers to adapt.

    Args:
        model: the bare backbone.
        targets: suffixes of layer names, or None for the default of the architecture. A suffix
            selects the linear layers whose names end in it; if there are none, the ungrouped
            convolutions.

    Raises:
        UsageError: a suffix matches no layer.
    """
    if targets is not None:
        return _matching(model, targets)
    linear, convolution = adaptable_layers(model)
    suffixes = _default_suffixes(model, linear)
    if suffixes is not None:
        return [name for name in linear if _ends_with(name, suffixes)]
    return (
        linear
        if _count_parameters(model, linear) >= _count_parameters(model, convolution)
        else convolution
    )


def adaptable_layers(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the linear layers and of the plain convolutions, no classifier.

    Grouped convolutions are left out, and dilated ones: peft makes adapters without dilation, whose
    outputs have another size.
    """
    heads = tuple(classifier_names(model))
    linear: list[str] = []
    convolution: list[str] = []
    for name, module in model.named_modules():
        if name in heads:
            continue
        if type(module) is nn.Linear:
            linear.append(name)
        elif isinstance(module, nn.Conv2d) and module.groups == 1 and not _is_dilated(module):
            convolution.append(name)
    return linear, convolution


def quantisable_layers(model: nn.Module) -> list[str]:
    """Return the linear layers that may be stored in 4 bits: all but the classifier.

    Mamba's ``dt_proj`` is left out, as in the code of arXiv 2607.02158: it is tiny and sets the
    scan's step sizes. Layers with an odd number of inputs are left out, because two 4-bit codes
    share a byte.
    """
    linear, _ = adaptable_layers(model)
    return [
        name
        for name in linear
        if not name.rpartition(".")[2].startswith("dt_proj") and _in_features(model, name) % 2 == 0
    ]


def _in_features(model: nn.Module, name: str) -> int:
    return int(model.get_submodule(name).in_features)  # type: ignore[arg-type]


def is_vision_transformer(model: nn.Module) -> bool:
    """Return whether a model is timm's ``VisionTransformer`` or derived (DeiT, DINOv2, SigLIP)."""
    return any(cls.__name__ == "VisionTransformer" for cls in type(model).__mro__)


def grouped_convolutions(model: nn.Module) -> list[str]:
    """Return the names of the depthwise and grouped convolutions."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


def dilated_convolutions(model: nn.Module) -> list[str]:
    """Return the names of the dilated convolutions that are not grouped."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and _is_dilated(module)
    ]


def pads_in_forward(module: nn.Module) -> bool:
    """Return whether a layer is timm's convolution with TensorFlow's "same" padding.

    Its ``padding`` is zero, and its forward pads by the size of the input. Classes are matched by
    name.
    """
    return isinstance(module, nn.Conv2d) and type(module).__name__.endswith("Same")


def _is_dilated(convolution: nn.Conv2d) -> bool:
    return any(step != 1 for step in convolution.dilation)


def _default_suffixes(model: nn.Module, linear: list[str]) -> tuple[str, ...] | None:
    """Return the default targets of a known architecture; None for any other."""
    ends = {name.rpartition(".")[2] for name in linear}
    if {"dt_proj", "fc1"} <= ends:  # MambaVision; its attention blocks have qkv and proj
        return ("in_proj", "out_proj", "fc1", "fc2", "qkv", "proj")
    if "dt_proj" in ends:  # Vim
        return ("in_proj", "x_proj", "dt_proj", "out_proj")
    if is_vision_transformer(model):
        return ("qkv", "fc1", "fc2")
    return None


def _matching(model: nn.Module, suffixes: tuple[str, ...]) -> list[str]:
    linear, convolution = adaptable_layers(model)
    chosen: set[str] = set()
    for suffix in suffixes:
        found = [n for n in linear if _ends_with(n, (suffix,))] or [
            n for n in convolution if _ends_with(n, (suffix,))
        ]
        if not found:
            raise UsageError(_nothing_matches(model, suffix, linear or convolution))
        chosen.update(found)
    return [name for name, _ in model.named_modules() if name in chosen]


def _nothing_matches(model: nn.Module, suffix: str, layers: list[str]) -> str:
    if any(_ends_with(name, (suffix,)) for name in grouped_convolutions(model)):
        return f"target {suffix!r} names only grouped convolutions, which cannot be adapted"
    if any(_ends_with(name, (suffix,)) for name in dilated_convolutions(model)):
        return f"target {suffix!r} names only dilated convolutions, which cannot be adapted"
    ends = sorted({name.rpartition(".")[2] for name in layers})
    return f"target {suffix!r} matches no layer; use one of {', '.join(ends[:12])}"


def _ends_with(name: str, suffixes: tuple[str, ...]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)


def _count_parameters(model: nn.Module, names: list[str]) -> int:
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())
