"""SigLIP from a folder in the form of transformers: ``config.json`` and ``model.safetensors``.

The model is transformers' ``SiglipModel`` with the two encoders that open_clip's models have, so
that it is used in the same way. The features are equal to those of ``SiglipModel``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from profiler.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from profiler.models.frozen.catalogue import FrozenModel


class SiglipTowers(nn.Module):
    """A ``SiglipModel`` with ``encode_image`` and ``encode_text``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def encode_image(self, images: Tensor, *, normalize: bool = False) -> Tensor:
        """Return the features [images, D] of images [images, 3, S, S]."""
        return _unit(self.model.vision_model(pixel_values=images).pooler_output, normalize)

    def encode_text(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        """Return the features [texts, D] of tokens [texts, context], padded to the context."""
        return _unit(self.model.text_model(input_ids=tokens).pooler_output, normalize)


def _unit(features: Tensor, normalize: bool) -> Tensor:
    return features / features.norm(dim=-1, keepdim=True) if normalize else features


def is_siglip_folder(folder: Path) -> bool:
    """Return whether ``config.json`` of a folder describes transformers' ``SiglipModel``."""
    try:
        given = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(given, dict) and given.get("model_type") == "siglip"


def load_siglip(
    model: FrozenModel, folder: Path, *, known: dict[str, Any], dtype: torch.dtype
) -> SiglipTowers:
    """Load a SigLIP on the CPU; no code of the folder runs and nothing is downloaded.

    Args:
        model: its entry in the catalogue.
        folder: folder of the checkpoint.
        known: open_clip's configuration of the model, which the folder is compared with.
        dtype: type of the weights.

    Raises:
        InputError: the folder is of another model.
    """
    import transformers

    config = transformers.SiglipConfig.from_pretrained(folder, local_files_only=True)
    text, vision = config.text_config, config.vision_config
    for name, own, other in (
        ("text_config.hidden_size", known["text_cfg"]["width"], text.hidden_size),
        ("text_config.num_hidden_layers", known["text_cfg"]["layers"], text.num_hidden_layers),
        ("vision_config.hidden_size", known["embed_dim"], vision.hidden_size),
        ("vision_config.image_size", model.image_size, vision.image_size),
    ):
        if own != other:
            raise InputError(
                f"{folder} is another model than {model.name}: {name} is {other} instead of {own}"
            )
    made, found = transformers.SiglipModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(f"{folder} is no checkpoint of {model.name}: it lacks {missing[0]!r}")
    return SiglipTowers(made)
