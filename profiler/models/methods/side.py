"""Ladder side tuning (LST, arXiv 2206.06522): no gradient flows through the backbone.

A narrow network runs beside the frozen backbone. Its block i mixes in the output of the backbone's
unit i, reduced to the ladder's width d = D / reduction:

    s_0 = down_0(x_0)                                x_0: input of the first unit
    s_i = block_i(g_i * down_i(x_i) + (1 - g_i) * s_{i-1})      g_i = sigmoid(a_i), a learned gate
    x_N + up(norm(s_N))  ->  final norm, pooling, classifier    x_i: output of unit i

Saved for backward are the x_i (inputs of the ``down`` layers) and the ladder's own activations.

*Token ladder*, if the outputs of all units are tokens of equal shape (ViT, Vim): its blocks are
transformer blocks of width d. With reduction 8 on ViT-B it has 2.38 M parameters, as published
(arXiv 2402.02242).
*Pooled ladder*, if resolutions change (TinyViT, MambaVision, CNNs): the x_i are averaged over
positions first, blocks are MLPs, and the result is added to the classifier's input. It saves one
vector [batch, channels] per unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from profiler.models.backbones.timm_interface import classifier_names
from profiler.models.checkpointable_units import find_blocks
from profiler.models.methods.base import Method
from profiler.models.methods.target_layers import learn_only, parameters_of, where_weights_are
from profiler.workload import Workload

HEAD_WIDTH = 32
"""Channels per attention head of a token ladder."""
SMALLEST_WIDTH = 16
FINAL_NORMS = ("norm", "norm_f")
"""Names of the norm after the last block in ViT and Vim."""


class Side(Method):
    """A ladder beside the frozen backbone; the rank is the reduction of the width."""

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse backbones with fewer than two units."""
        if len(find_blocks(model)) >= 2:
            return None
        return f"{type(model).__name__} has no sequence of units for a ladder"

    def notes(self, model: nn.Module, workload: Workload) -> list[str]:
        """Return a remark on checkpointing."""
        return ["checkpointing the backbone frees nothing: it is not differentiated"]

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Add the ladder."""
        self.raise_refusal(model, workload)
        units = find_blocks(model)
        with where_weights_are(model):
            known = (workload.model, workload.image_size, units)
            shapes = _shapes.get(known) or _unit_shapes(model, units, size=workload.image_size)
            _shapes[known] = shapes
            final_norm = next((n for n in FINAL_NORMS if n in model._modules), None)
            on_tokens = final_norm is not None and len({s[1:] for s in shapes}) == 1
            on_tokens = on_tokens and len(shapes[0]) == 3
            top = final_norm if on_tokens else classifier_names(model)[0]
            assert top is not None
            ladder = Ladder(
                [_channels(shape) for shape in shapes],
                outputs=_channels(shapes[-1]) if on_tokens else _classifier_inputs(model),
                reduction=self.rank(workload),
                on_tokens=on_tokens,
            )
        model.side = ladder
        model.get_submodule(units[0]).register_forward_pre_hook(ladder.start)
        for unit in units:
            model.get_submodule(unit).register_forward_hook(ladder.rung)
        model.get_submodule(top).register_forward_pre_hook(ladder.arrive)
        learn_only(model, parameters_of(model, ["side"]))
        return model


_shapes: dict[tuple[str, int, tuple[str, ...]], list[torch.Size]] = {}
"""Shapes of ``_unit_shapes`` by backbone, image size and units: a search builds the ladder of one
backbone dozens of times, and most of that time is the forward that shows the shapes."""


class Ladder(nn.Module):
    """The narrow network.

    Args:
        widths: channels of the first unit's input and of every unit's output.
        outputs: channels of the features that the result is added to.
        reduction: channels of the last unit per channel of the ladder.
        on_tokens: whether it is a token ladder; else a pooled one.
    """

    def __init__(self, widths: list[int], *, outputs: int, reduction: int, on_tokens: bool) -> None:
        super().__init__()
        width = max(SMALLEST_WIDTH, widths[-1] // reduction)
        self.on_tokens = on_tokens
        self.downs = nn.ModuleList(nn.Linear(inputs, width) for inputs in widths)
        self.gates = nn.Parameter(torch.zeros(len(widths) - 1))
        rung = _token_block if on_tokens else PooledBlock
        self.blocks = nn.ModuleList(rung(width) for _ in widths[1:])
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, outputs)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.seen: list[Tensor] = []

    def start(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Store the first unit's input (hook)."""
        self.seen = [self._reduced(args[0])]

    def rung(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Store a unit's output (hook)."""
        self.seen.append(self._reduced(output))

    def arrive(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Add the ladder's result to the backbone's features (hook)."""
        seen, self.seen = self.seen, []
        return (args[0] + self(seen).to(args[0].dtype), *args[1:])

    def forward(self, seen: list[Tensor]) -> Tensor:
        """Stored features -> [batch, (tokens,) outputs]."""
        state: Tensor = self.downs[0](seen[0])
        gates = torch.sigmoid(self.gates)
        for gate, features, down, block in zip(
            gates, seen[1:], self.downs[1:], self.blocks, strict=True
        ):
            state = block(torch.lerp(state, down(features), gate.to(state.dtype)))
        result: Tensor = self.up(self.norm(state))
        return result

    def _reduced(self, features: Tensor) -> Tensor:
        """Detach; in a pooled ladder, average over positions."""
        features = features.detach()
        if self.on_tokens:
            return features
        axes = [a for a in range(1, features.ndim) if a != _channel_axis(features.shape)]
        return features.mean(axes) if axes else features


class PooledBlock(nn.Module):
    """Residual MLP on one vector per image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] -> the same."""
        y: Tensor = x + self.fc2(self.act(self.fc1(self.norm(x))))
        return y


def _token_block(width: int) -> nn.Module:
    heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
    block: nn.Module = Block(dim=width, num_heads=heads, qkv_bias=True)
    return block


def _channel_axis(shape: torch.Size) -> int:
    """Return the channel axis of [batch, C, H, W], Swin's [batch, H, W, C] or [batch, length, C].

    Images are square, so the two equal axes are the positions.
    """
    return 1 if len(shape) == 4 and shape[2] == shape[3] else len(shape) - 1


def _channels(shape: torch.Size) -> int:
    return shape[_channel_axis(shape)]


def _classifier_inputs(model: nn.Module) -> int:
    classifier = model.get_submodule(classifier_names(model)[0])
    return int(classifier.in_features)  # type: ignore[arg-type]


def _unit_shapes(model: nn.Module, units: tuple[str, ...], *, size: int) -> list[torch.Size]:
    """Run one image through and return the shapes of the first unit's input and all outputs."""
    shapes: list[torch.Size] = []
    first = model.get_submodule(units[0])
    handles = [first.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))]
    for unit in units:
        note = model.get_submodule(unit).register_forward_hook
        handles.append(note(lambda _, args, output: shapes.append(output.shape)))
    try:
        with torch.no_grad(), _evaluating(model):
            model(torch.zeros(1, 3, size, size))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    yield
    for module, training in modes.items():
        module.training = training
