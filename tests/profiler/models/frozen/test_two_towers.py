"""Loading of contrastive models, against open_clip's own model and zero-shot classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from profiler.errors import InputError
from profiler.models.frozen.catalogue import frozen_models
from profiler.models.frozen.load import load_two_towers, normalisation
from tests.profiler.models.frozen.checkpoints import character_tokenizer, towers_folder
from tests.profiler.models.frozen.tiny import TINY


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_folder_or_a_file_of_weights(tmp_path: Path, name: str) -> None:
    made = towers_folder(name, tmp_path)
    for place in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        loaded = load_two_towers(TINY[name], place)
        for key, tensor in made.state_dict().items():
            assert torch.equal(loaded.built.state_dict()[key], tensor)
    tokens = loaded.tokenize(["a cat", "a dog"])
    assert tokens.shape == (2, 16)
    assert not torch.equal(tokens[0], tokens[1])


def test_what_is_no_such_checkpoint(tmp_path: Path) -> None:
    def refused(text: str, place: Path = tmp_path, name: str = "clip") -> None:
        with pytest.raises(InputError, match=text) as error:
            load_two_towers(TINY[name], place)
        assert "\n" not in str(error.value)

    refused("has none of open_clip_model.safetensors")
    refused("do not exist", tmp_path / "none.bin")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"not weights")
    refused("holds no weights of clip")
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "open_clip_model.safetensors")
    refused("holds no weights of clip")
    towers_folder("siglip", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    refused("has no tokenizer of siglip .*copy tokenizer.json", name="siglip")


def test_means_are_those_of_the_library() -> None:
    import open_clip

    for name, model in frozen_models().items():
        if model.package == "open_clip":
            published = open_clip.get_pretrained_cfg(model.model, model.checkpoint)
            mean = published.get("mean") or open_clip.OPENAI_DATASET_MEAN
            std = published.get("std") or open_clip.OPENAI_DATASET_STD
            assert normalisation(model) == (tuple(mean), tuple(std)), name


def siglip_folder(folder: Path, **vision: int) -> Any:
    """Write a tiny checkpoint of transformers' SigLIP; return the model."""
    import transformers

    torch.manual_seed(0)
    both = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64}  # fmt: skip
    config = transformers.SiglipConfig(
        text_config=both | {"vocab_size": 128, "max_position_embeddings": 16},
        vision_config=both | {"image_size": 160, "patch_size": 32} | vision,
    )
    made = transformers.SiglipModel(config).eval()
    made.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return made


def test_a_siglip_of_transformers_has_the_logits_of_the_library(tmp_path: Path) -> None:
    made = siglip_folder(tmp_path)
    loaded = load_two_towers(TINY["siglip"], tmp_path)
    images, tokens = torch.randn(3, 3, 160, 160), loaded.tokenize(["a cat", "two dogs"])
    assert tokens.shape == (2, 16)
    with torch.no_grad():
        expected = made(input_ids=tokens, pixel_values=images).logits_per_image
        seen = loaded.built.encode_image(images, normalize=True)
        read = loaded.built.encode_text(tokens, normalize=True)
        found = seen @ read.T * made.logit_scale.exp() + made.logit_bias
    assert torch.allclose(found, expected, atol=1e-6)
    assert expected.std() > 0
    assert not any(tensor.requires_grad for tensor in loaded.built.parameters())


def test_folders_of_transformers_that_hold_no_such_siglip(tmp_path: Path) -> None:
    def refused(text: str, name: str = "siglip") -> None:
        with pytest.raises(InputError, match=text) as error:
            load_two_towers(TINY[name], tmp_path)
        assert "\n" not in str(error.value)

    siglip_folder(tmp_path, image_size=96)
    refused("another model than siglip: vision_config.image_size is 96 instead of 160")
    refused("another model than clip", "clip")
    made = siglip_folder(tmp_path)
    tensors = {key: value.contiguous() for key, value in made.state_dict().items()}
    del tensors["logit_scale"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused("it lacks 'logit_scale'")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    refused("holds no siglip")
