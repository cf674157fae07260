"""Loading of contrastive models, against open_clip's own model and zero-shot classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from profiler.errors import InputError
from profiler.models.frozen.catalogue import frozen_models
from profiler.models.frozen.load import load_two_towers, normalisation
from tests.profiler.models.frozen.checkpoints import towers_folder
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
