"""Load the published weights of a frozen model from a local folder or file.

Loading goes through the libraries: open_clip's ``load_checkpoint``, transformers'
``from_pretrained`` (safetensors only, no code from the folder, no network). Nothing in a file is
executed. MobileVLM V2 has no library; its tensors are read by ``read_checkpoint``.

    open_clip      a file of weights, or a folder as on the hub. SigLIP's tokenizer is read from the
                   folder; CLIP's is in open_clip.
    SigLIP         also a folder of transformers' ``SiglipModel`` (``frozen.siglip``)
    transformers   a folder with ``config.json``, weights and tokenizer
    MobileVLM V2   a folder with the weights (any number of files) and a tokenizer
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from profiler.errors import InputError
from profiler.models.frozen.build import EXTRA, build_frozen
from profiler.models.silent_log import silent_log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from profiler.models.frozen.catalogue import FrozenModel

_CLIP_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
"""Names of open_clip's weights on the hub, the preferred ones first."""

_MODEL_TYPES = {"paligemma": ("paligemma",), "smolvlm": ("smolvlm", "idefics3")}
"""``model_type`` in the configuration of each family. The first SmolVLMs have Idefics3's class."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
"""Means and standard deviations of the images: CLIP's, and those of SigLIP and SmolVLM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTowers:
    """A loaded contrastive model.

    Attributes:
        built: the model, with ``encode_image`` and ``encode_text``.
        tokenize: maps texts to tokens [texts, context].
    """

    built: nn.Module
    tokenize: Callable[[Sequence[str]], Tensor]


def normalisation(model: FrozenModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the image channels that a model expects."""
    is_half = "siglip" in model.model.lower() or model.model in _MODEL_TYPES
    return (HALF, HALF) if is_half else (CLIP_MEAN, CLIP_STD)


def load_two_towers(model: FrozenModel, weights: Path) -> TwoTowers:
    """Load a contrastive model on the CPU in fp32.

    Args:
        model: its entry in the catalogue.
        weights: file of weights, or a folder with one.

    Raises:
        InputError: the weights cannot be read, are those of another model, or lack a tokenizer.
    """
    folder = weights if weights.is_dir() else weights.parent
    if weights.is_dir() and _is_of_transformers(weights):
        build_frozen(model)  # refuses a missing library
        built: Any = _siglip_towers(model, weights)
    else:
        built = _open_clip_towers(model, _clip_file(weights))
    import open_clip

    text = _open_clip_config(model)["text_cfg"]
    context: int = text["context_length"]
    if "hf_tokenizer_name" not in text:
        return TwoTowers(built=built, tokenize=open_clip.SimpleTokenizer(context_length=context))
    options = {**text.get("tokenizer_kwargs", {}), "local_files_only": True}
    try:
        tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), context_length=context, **options)
    except Exception as error:  # transformers raises many types on missing or damaged files
        raise InputError(
            f"{folder} has no tokenizer of {model.name} ({_reason(error)}); copy tokenizer.json "
            "and tokenizer_config.json of its checkpoint there"
        ) from error
    return TwoTowers(built=built, tokenize=tokenizer)


def _open_clip_towers(model: FrozenModel, file: Path) -> nn.Module:
    """Load a file of open_clip's weights."""
    built = build_frozen(model, device="cpu")  # refuses a missing library
    import open_clip

    try:
        with silent_log("root"):  # open_clip logs there
            open_clip.load_checkpoint(built, str(file), strict=True, weights_only=True)
    except Exception as error:  # torch and open_clip raise many types on damaged files
        raise InputError(
            f"{file} holds no weights of {model.name} as open_clip names them: {_reason(error)}"
        ) from error
    return built


def _siglip_towers(model: FrozenModel, folder: Path) -> nn.Module:
    """Load a folder of transformers' ``SiglipModel``."""
    from profiler.models.frozen.siglip import load_siglip

    try:
        with silent_log("transformers"):
            built = load_siglip(model, folder, known=_open_clip_config(model), dtype=torch.float32)
    except InputError:
        raise
    except Exception as error:  # transformers raises many types on missing or damaged files
        raise InputError(f"{folder} holds no {model.name}: {_reason(error)}") from error
    return built.eval().requires_grad_(False)


def _open_clip_config(model: FrozenModel) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] = model.config or open_clip.get_model_config(model.model)
    return config


def _is_of_transformers(folder: Path) -> bool:
    """Return whether a folder has no weights of open_clip, but a configuration of SigLIP."""
    from profiler.models.frozen.siglip import is_siglip_folder

    own = [name for name in _CLIP_FILES if name.startswith("open_clip")]
    return is_siglip_folder(folder) and not any((folder / name).is_file() for name in own)


def load_prompted(
    model: FrozenModel, weights: Path, *, dtype: torch.dtype
) -> tuple[nn.Module, Any]:
    """Load a language model that sees images on the CPU; return it and its tokenizer.

    Args:
        model: its entry in the catalogue.
        weights: folder of the checkpoint.
        dtype: type of the weights.

    Raises:
        InputError: the folder holds no such model, or no tokenizer.
    """
    if not weights.is_dir():
        raise InputError(
            f"{weights} is no folder; {model.name} needs the folder of its checkpoint "
            f"({model.checkpoint}) with weights, configuration and tokenizer"
        )
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(f"{model.name} needs {error.name}: {EXTRA}") from error

    try:
        with silent_log("transformers"):
            if model.package == "own":
                built = _load_mobilevlm(model, weights, dtype)
            else:
                _check_configuration(model, weights)
                built = transformers.AutoModelForImageTextToText.from_pretrained(
                    weights, local_files_only=True, use_safetensors=True, dtype=dtype
                )
            tokenizer = transformers.AutoTokenizer.from_pretrained(weights, local_files_only=True)
    except InputError:
        raise
    except Exception as error:  # transformers raises many types on missing or damaged files
        raise InputError(f"{weights} holds no {model.name}: {_reason(error)}") from error
    return built.eval().requires_grad_(False), tokenizer


def _check_configuration(model: FrozenModel, folder: Path) -> None:
    """Refuse a folder of another model than the catalogue's, before its weights are read."""
    import transformers

    found = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kinds = _MODEL_TYPES[model.model]
    if found.model_type not in kinds:
        raise InputError(f"{folder} is of type {found.model_type!r}, {model.name} is {kinds[0]!r}")
    known = build_frozen(model).config
    for part in ("text_config", "vision_config"):
        for name in ("hidden_size", "num_hidden_layers"):
            own, other = (getattr(getattr(c, part), name) for c in (known, found))
            if own != other:
                raise InputError(
                    f"{folder} is another model than {model.name}: {part}.{name} is {other} "
                    f"instead of {own}"
                )


def _load_mobilevlm(model: FrozenModel, folder: Path, dtype: torch.dtype) -> nn.Module:
    from profiler.models.backbones.checkpoint_file import read_checkpoint
    from profiler.models.frozen.mobilevlm import published_names

    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"{folder} has neither *.safetensors nor pytorch_model*.bin")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_checkpoint(file)
    built = build_frozen(model, device="cpu").to(dtype)
    missing, unknown = built.load_state_dict(published_names(tensors), strict=False)
    # later LLaMA classes compute these tables; checkpoints of that time hold them
    unknown = [name for name in unknown if not name.endswith(("inv_freq", "position_ids"))]
    if missing or unknown:
        word, name = ("lacks", missing[0]) if missing else ("has the unknown tensor", unknown[0])
        raise InputError(f"{folder} is no checkpoint of {model.name}: it {word} {name[:120]!r}")
    return built


def _clip_file(weights: Path) -> Path:
    """Return the file of weights that a user named directly or by its folder."""
    if weights.is_dir():
        for name in _CLIP_FILES:
            if (weights / name).is_file():
                return weights / name
        raise InputError(f"{weights} has none of {', '.join(_CLIP_FILES)}")
    if not weights.is_file():
        raise InputError(f"weights {weights} do not exist; give a file or a folder")
    return weights


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
