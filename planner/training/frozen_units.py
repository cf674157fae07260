"""Training on stored activations of the units that come before the first one that learns.

``partial_K`` and ``side`` differentiate a small part of the model, and repeat the forward of the
frozen rest for every image in every epoch. ``FrozenUnits`` runs that rest once for each image and
keeps either of

    the output of the last frozen unit                    (``partial_K``: nothing else is used)
    the input of the first unit and all outputs           (``side``: its ladder reads them)

as one row of numbers. A training then runs the model on rows: the stem sees an image of zeros, a
frozen unit returns its stored output, or zeros of its shape, and all other modules run as ever.

Whether this is exact is not derived from the structure. It is tried on a few images: logits and the
gradients of all trainable tensors must be those of the whole model in training mode. Noise is added
to these tensors for the check, because many start at zero and hide their factors. Dropout,
stochastic depth, BatchNorm that normalises by the batch, and a path around the units fail.

``bn_head`` cannot be trained on stored activations: its first trained tensor is that of the first
normalisation, so that nothing but the first convolution is frozen before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from profiler.models.build import BuiltModel
from profiler.models.checkpointable_units import find_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-4
"""Largest relative and absolute difference of logits and gradients that counts as rounding."""

SHIFT = 0.05
"""Deviation of the noise in the check. It is far above ``TOLERANCE``, and far below the weights of
a normalisation, so that activations keep their order of magnitude."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenUnits:
    """The frozen units of a model, and which of their activations a row holds.

    Attributes:
        units: names of the units before the first one that learns, in forward order.
        keeps_all: whether a row holds the first unit's input and all outputs, or the last output.
        shapes: shapes without the batch of the first unit's input and of every unit's output.
        image_shape: shape of an image.
    """

    units: tuple[str, ...]
    keeps_all: bool
    shapes: tuple[torch.Size, ...]
    image_shape: torch.Size

    @classmethod
    def of(cls, built: BuiltModel, images: Tensor) -> FrozenUnits | None:
        """Return the frozen units of a model; None if its training on rows is not exact.

        Args:
            built: the model, in training mode.
            images: at least 3 images [N, 3, S, S] on the model's device, for the check.
        """
        names = find_blocks(built.backbone)
        units = tuple(takewhile(lambda name: not _learns(_module(built, name)), names))
        if not units:
            return None
        with _recorded(built, units) as seen, torch.no_grad():
            built.model(images)
        if len(seen) != len(units) + 1 or not all(map(_is_batch, seen)):
            return None
        for keeps_all in (False, True):
            found = cls(
                units=units,
                keeps_all=keeps_all,
                shapes=tuple(each.shape[1:] for each in seen),
                image_shape=images.shape[1:],
            )
            if found._is_exact(built, images):
                return found
        return None

    @property
    def key(self) -> str:
        """Text that names the content of a row."""
        return f"{'all' if self.keeps_all else 'last'} of {', '.join(self.units)}"

    @property
    def row_numbers(self) -> int:
        """Length of a row."""
        shapes = self.shapes if self.keeps_all else self.shapes[-1:]
        return sum(math.prod(shape) for shape in shapes)

    def rows(self, built: BuiltModel, images: Tensor) -> Tensor:
        """Return the rows [N, numbers] of images [N, 3, S, S]; gradients are not recorded."""
        with _recorded(built, self.units) as seen, torch.no_grad():
            built.model(images)
        kept = seen if self.keeps_all else seen[-1:]
        return torch.cat([each.flatten(1) for each in kept], dim=1)

    def learned(self, built: BuiltModel) -> Iterable[Tensor]:
        """Yield the tensors that no row depends on."""
        return (each for each in built.model.parameters() if each.requires_grad)

    def install(self, built: BuiltModel) -> Callable[[], None]:
        """Make a model take rows [N, numbers] in place of images; return a function that undoes it.

        Args:
            built: the model.
        """
        original, stored = built.model.forward, dict[str, Any]()
        places = [_module(built, name) for name in self.units]

        def on_rows(rows: Tensor) -> Tensor:
            stored["tensors"] = list(self._tensors(rows))
            images = rows.new_zeros(1).expand(len(rows), *self.image_shape)
            logits: Tensor = original(images)
            return logits

        def first_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (stored["tensors"][0], *args[1:])

        def output_of(number: int) -> Callable[..., Tensor]:
            return lambda *args, **options: stored["tensors"][number]

        handle = places[0].register_forward_pre_hook(first_input, prepend=True)
        built.model.forward = on_rows
        for number, module in enumerate(places):
            module.forward = output_of(number + 1)

        def undo() -> None:
            handle.remove()
            for each in (built.model, *places):
                del each.forward  # the class's own is visible again

        return undo

    def _tensors(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield the first unit's input and every unit's output; zeros if it is not stored."""
        start = 0
        for number, shape in enumerate(self.shapes):
            if self.keeps_all or number == len(self.shapes) - 1:
                end = start + math.prod(shape)
                yield rows[:, start:end].reshape(len(rows), *shape)
                start = end
            else:
                yield rows.new_zeros(1).expand(len(rows), *shape)

    def _is_exact(self, built: BuiltModel, images: Tensor) -> bool:
        """Return whether logits and gradients on rows are those on images."""
        with _shifted(self.learned(built)):
            built.model.eval()
            rows = self.rows(built, images)
            built.model.train()
            expected = _logits_and_gradients(built, images)
            few = _logits_and_gradients(built, images[:-1])[0]
            undo = self.install(built)
            try:
                found = _logits_and_gradients(built, rows)
            except Exception:  # a module refuses the zeros
                return False
            finally:
                undo()
        pairs = [*zip(expected, found, strict=True), (expected[0][:-1], few)]
        return all(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in pairs)


def _logits_and_gradients(built: BuiltModel, inputs: Tensor) -> list[Tensor]:
    """Return the logits, and the gradient of their squares for every trainable tensor."""
    logits = built.model(inputs)
    learned = [each for each in built.model.parameters() if each.requires_grad]
    # Logits near zero have almost no gradient, unless something is added.
    target = (logits + logits.new_ones(()) / 2).square().mean()
    gradients = torch.autograd.grad(target, learned, allow_unused=True)
    return [
        logits.detach(),
        *(
            torch.zeros_like(each) if found is None else found
            for each, found in zip(learned, gradients, strict=True)
        ),
    ]


@contextmanager
def _shifted(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Add normal noise of deviation ``SHIFT`` to tensors, and restore them.

    A tensor of zeros hides its factor. With a classifier of zeros, no gradient
    reaches the units; a ladder that ends in zeros gives the same output for every input.
    """
    generator = torch.Generator().manual_seed(0)
    changed = [(each, each.detach().clone()) for each in tensors]
    with torch.no_grad():
        for each, before in changed:
            each.add_(torch.randn(before.shape, generator=generator).to(before), alpha=SHIFT)
    try:
        yield
    finally:
        with torch.no_grad():
            for each, before in changed:
                each.copy_(before)


@contextmanager
def _recorded(built: BuiltModel, units: tuple[str, ...]) -> Iterator[list[Any]]:
    """Record the first unit's input and every unit's output, in the order of the calls."""
    seen: list[Any] = []
    with ExitStack() as hooks:
        first = _module(built, units[0])
        handle = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=True)
        hooks.callback(handle.remove)
        for name in units:
            note = _module(built, name).register_forward_hook
            handle = note(lambda _, args, output: seen.append(output))
            hooks.callback(handle.remove)
        yield seen


def _module(built: BuiltModel, name: str) -> Any:
    return built.backbone.get_submodule(name)


def _learns(module: nn.Module) -> bool:
    return any(each.requires_grad for each in module.parameters())


def _is_batch(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1
