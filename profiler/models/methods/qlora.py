"""QLoRA (arXiv 2305.14314, section 3): LoRA over frozen weights in 4-bit NormalFloat.

The scales of the weights are quantised too (double quantisation). Storage and kernels are
bitsandbytes'. A weight of n elements becomes

    n / 2 bytes of packed codes                 uint8 [n / 2, 1]
    n / 64 bytes of quantised block maxima      uint8 [n / 64]             (block 64)
    n / 64 / 256 * 4 bytes of their maxima      float32                    (block 256)
    1,024 + 64 + 4 bytes of code tables and mean per layer

``FourBitLinear`` differs from ``bitsandbytes.nn.Linear4bit`` in its multiplication:
- It dequantises and calls ``linear`` as separate operations. bitsandbytes 0.50 does the same inside
  one operator above 1,536 rows of input (its CUDA heuristics; always on a CPU), where a recorder of
  operations does not see the dequantised weight.
- It dequantises directly to the compute dtype, forward and backward. ``MatMul4Bit.backward`` first
  makes a copy in the weight's original dtype.
- It never repacks weights for CPU inference. ``Linear4bit.forward`` does so at the first evaluation
  on AVX512-BF16 machines; a later training step has no gradient to the layer's input.

On ``meta`` or fake weights the layer holds empty tensors of the same shapes and dtypes. All are
parameters or buffers, so that a profiler counts each byte.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from profiler.models.methods.lowrank import Lora
from profiler.models.methods.target_layers import quantisable_layers, where_weights_are
from profiler.workload import Workload

BLOCK = 64
NESTED_BLOCK = 256
"""Block sizes of bitsandbytes' nf4 with double quantisation (``quantize_4bit``)."""

COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class QLora(Lora):
    """LoRA over a backbone whose linear layers are stored in 4 bits."""

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse backbones without linear layers."""
        if quantisable_layers(model):
            return None
        return (
            f"{type(model).__name__} has no linear layer but its classifier, "
            "and bitsandbytes stores no convolution in 4 bits"
        )

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Quantise the linear layers, then add LoRA."""
        self.raise_refusal(model, workload)
        config = self.config(model, workload)  # before the targets change their class
        quantise(model, compute_dtype=COMPUTE_DTYPES[workload.precision])
        return self.wrap(model, config)


def quantise(model: nn.Module, *, compute_dtype: torch.dtype) -> None:
    """Replace every quantisable linear layer of a backbone by a ``FourBitLinear``."""
    with where_weights_are(model):
        for name in quantisable_layers(model):
            parent, _, child = name.rpartition(".")
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            setattr(model.get_submodule(parent), child, FourBitLinear(layer, compute_dtype))


class FourBitLinear(Linear4bit):  # type: ignore[misc]
    """A frozen linear layer in nf4.

    Args:
        layer: the layer to quantise.
        compute_dtype: dtype of the dequantised weight and of the product.
    """

    def __init__(self, layer: nn.Linear, compute_dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.compute_dtype = compute_dtype
        self.shape = (layer.out_features, layer.in_features)
        self.training = layer.training
        packed, tensors = _quantised(layer.weight.detach())
        self.weight: nn.Parameter = (
            nn.Parameter(packed, requires_grad=False)
            if isinstance(packed, FakeTensor)  # a tensor has one subclass only
            else Params4bit(packed, quant_type="nf4", bnb_quantized=True)
        )
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        bias = None if layer.bias is None else nn.Parameter(layer.bias, requires_grad=False)
        self.bias = bias

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Write the keys of ``Linear4bit``; without values, only the packed weight and the bias."""
        real = not self.weight.is_meta and not isinstance(self.weight.data, FakeTensor)
        weight: Any = self.weight
        weight.quant_state = self.quantisation_state() if real else None
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight.quant_state = None  # a copy of the layer on another device must not share it

    def quantisation_state(self) -> bnb.QuantState:
        """Return the quantisation state in bitsandbytes' class, without copies."""
        nested = bnb.QuantState(
            absmax=self.nested_absmax,
            code=self.nested_code,
            blocksize=NESTED_BLOCK,
            dtype=torch.float32,
        )
        return bnb.QuantState(
            absmax=self.absmax,
            shape=torch.Size(self.shape),
            code=self.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.compute_dtype,
            offset=self.offset,
            state2=nested,
        )

    def dequantised(self) -> Tensor:
        """Return the weight [out, in] in the compute dtype."""
        scales = torch.ops.bitsandbytes.dequantize_blockwise.default(
            self.absmax, self.nested_absmax, self.nested_code, NESTED_BLOCK, torch.float32
        )
        scales += self.offset
        weight: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.weight.data, scales, BLOCK, "nf4", self.shape, self.compute_dtype
        )
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply in the compute dtype; outside autocast, return the dtype of the input."""
        incoming = x.dtype
        product: Tensor = _Multiply.apply(x.to(self.compute_dtype), self)
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            return product
        return product.to(incoming)


class _Multiply(torch.autograd.Function):
    """x Wᵀ + b; saves no tensor, because backward dequantises the weight again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(layer.compute_dtype)
        return F.linear(x, layer.dequantised(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.dequantised(), None


def _quantised(weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the packed codes and the tensors of the quantisation state by name."""
    if weight.device.type == "meta" or isinstance(weight, FakeTensor):
        return _empty_quantised(weight.numel(), weight.device)
    packed, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return packed, {
        "absmax": state.absmax,
        "offset": state.offset,
        "code": state.code,
        "nested_absmax": state.state2.absmax,
        "nested_code": state.state2.code,
    }


def _empty_quantised(elements: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Return empty tensors of the shapes and dtypes that quantisation gives.

    bitsandbytes' own fake kernels are not called: they put a fake code table into its global cache
    (``functional.name2qmap``), which the next real quantisation would use.
    """
    blocks = -(-elements // BLOCK)
    codes = partial(torch.empty, dtype=torch.uint8, device=device)
    single = partial(torch.empty, dtype=torch.float32, device=device)
    return codes(((elements + 1) // 2, 1)), {
        "absmax": codes(blocks),
        "offset": single(()),
        "code": single(16),
        "nested_absmax": single(-(-blocks // NESTED_BLOCK)),
        "nested_code": single(256),
    }
