"""Linear layers of a frozen model in 4 bits, with bitsandbytes' storage and kernels."""

from __future__ import annotations

import torch
from torch import nn

from profiler.models.import_quantised import import_quantised


def quantise_frozen(built: nn.Module, *, compute_dtype: torch.dtype) -> None:
    """Store the linear layers of a model in nf4, all but the last one over the vocabulary.

    Embeddings, norms and convolutions keep their type. Subclasses of ``nn.Linear`` stay as they
    are, because their libraries read the weight itself.

    Args:
        built: the model, whose weights have the compute type; on ``meta`` nothing is computed.
        compute_dtype: type of the dequantised weights and of the products.
    """
    qlora = import_quantised("profiler.models.methods.qlora")
    chosen = [
        name
        for name, layer in built.named_modules()
        if type(layer) is nn.Linear and name != "lm_head" and layer.in_features % 2 == 0
    ]
    for name in chosen:
        parent, _, child = name.rpartition(".")
        layer = built.get_submodule(name)
        setattr(built.get_submodule(parent), child, qlora.FourBitLinear(layer, compute_dtype))
