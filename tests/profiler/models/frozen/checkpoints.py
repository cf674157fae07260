"""Checkpoint folders of tiny frozen models, as their libraries write them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from profiler.models.frozen.build import build_frozen
from tests.profiler.models.frozen.tiny import TINY

SPECIAL = (
    "<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<fake_token_around_image>",
    "<global-img>", "<end_of_utterance>",
)  # fmt: skip


def character_tokenizer() -> Any:
    """A tokenizer of single characters with the special tokens of all families."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted({*string.printable} - {"\r", "\x0b", "\x0c"})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>", additional_special_tokens=list(SPECIAL[4:]),
    )  # fmt: skip


def random_model(name: str, *, scale: float = 3.0) -> Any:
    """A tiny model whose answers depend on the image: weights of larger spread than usual."""
    torch.manual_seed(0)
    built = build_frozen(TINY[name], device="cpu")
    with torch.no_grad():
        for tensor in built.parameters():
            if tensor.ndim > 1:
                tensor.mul_(scale)
    return built


def prompted_folder(name: str, folder: Path) -> Any:
    """Write the checkpoint of a prompted model; return the model."""
    built = random_model(name)
    folder.mkdir(exist_ok=True)
    if name == "mobilevlm":
        tower = "model.vision_tower.vision_tower."
        tensors = {
            key.replace(tower, f"{tower}vision_model."): tensor.clone()
            for key, tensor in built.state_dict().items()
        }
        torch.save(dict(list(tensors.items())[:9]), folder / "pytorch_model-00001-of-00002.bin")
        torch.save(dict(list(tensors.items())[9:]), folder / "pytorch_model-00002-of-00002.bin")
    else:
        built.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    if name == "mobilevlm":
        config = {"model_type": "llama", "tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "config.json").write_text(json.dumps(config))
    return built


def towers_folder(name: str, folder: Path) -> Any:
    """Write the checkpoint of a contrastive model with a tokenizer; return the model."""
    built = random_model(name, scale=1.0)
    folder.mkdir(exist_ok=True)
    save_file(
        {key: tensor.contiguous() for key, tensor in built.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    character_tokenizer().save_pretrained(folder)
    return built
