"""Answers of prompted models, against the libraries' own forward and generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from profiler.errors import InputError
from profiler.models.frozen.load import load_prompted
from profiler.models.frozen.mobilevlm import IMAGE_TOKEN
from profiler.models.frozen.prompted import PromptedModel
from tests.profiler.models.frozen.checkpoints import prompted_folder
from tests.profiler.models.frozen.tiny import TINY

FAMILIES = ("paligemma", "smolvlm", "mobilevlm")
NAMES = ("cat", "a catfish", "dog", "zebra", "c", "tiny horse")
QUESTION = "what is it?"


@pytest.fixture(scope="module", params=FAMILIES)
def prompted(request: Any, tmp_path_factory: pytest.TempPathFactory) -> PromptedModel:
    folder = tmp_path_factory.mktemp(request.param)
    made = prompted_folder(request.param, folder)
    model = TINY[request.param]
    built, tokenizer = load_prompted(model, folder, dtype=torch.float32)
    for name, tensor in made.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor)
    return PromptedModel(model, built, tokenizer)


def image() -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def library_inputs(prompted: PromptedModel, answer: list[int]) -> dict[str, Any]:
    """The inputs of the library's own forward for a prompt and an answer, without a cache."""
    config: Any = prompted.built.config
    token = getattr(config, "image_token_id", IMAGE_TOKEN)
    prompt = prompted.prompt_tokens(QUESTION, image_token=token)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([prompt + answer]), "pixel_values": image()
    }  # fmt: skip
    if prompted.model.name == "paligemma":
        inputs["token_type_ids"] = torch.tensor([[0] * len(prompt) + [1] * len(answer)])
    if prompted.model.name == "smolvlm":
        inputs["pixel_values"] = image()[:, None]
    return inputs


def test_a_likelihood_is_that_of_the_librarys_whole_forward(prompted: PromptedModel) -> None:
    names = [prompted.name_tokens(name) for name in NAMES]
    read = prompted.read(image(), QUESTION)
    found = prompted.likelihoods(read, names)
    for tokens, likelihood in zip(names, found.tolist(), strict=True):
        with torch.no_grad():
            logits = prompted.built(**library_inputs(prompted, tokens)).logits[0]
        each = logits.log_softmax(-1)[-len(tokens) - 1 : -1]
        expected = each[range(len(tokens)), tokens].sum().item()
        assert likelihood == pytest.approx(expected, abs=2e-3)
    assert found.std() > 0.1
    assert torch.equal(prompted.likelihoods(read, names), found)  # the cache stays as it was


def test_the_free_answer_is_that_of_the_librarys_generate(prompted: PromptedModel) -> None:
    options = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": prompted.end_token}
    inputs = library_inputs(prompted, [])
    if prompted.model.name == "mobilevlm":
        from transformers import LlamaForCausalLM

        llama = LlamaForCausalLM(prompted.built.config).eval()
        llama.load_state_dict(prompted.built.state_dict(), strict=False)
        is_image = inputs["input_ids"] == IMAGE_TOKEN
        with torch.no_grad():
            embedded = llama.model.embed_tokens(inputs["input_ids"].masked_fill(is_image, 0))
            embedded[is_image] = prompted.built.image_tokens(image()).flatten(0, 1)
        written = llama.generate(inputs_embeds=embedded, **options)
    else:
        whole = prompted.built.generate(**inputs, **options)
        written = whole[:, inputs["input_ids"].shape[1] :]
    answer = prompted.write(prompted.read(image(), QUESTION), most_tokens=7)
    assert answer == [int(token) for token in written[0] if token != prompted.end_token]
    assert answer


def test_an_answer_is_text(prompted: PromptedModel) -> None:
    assert prompted.text([*prompted.name_tokens("a cat"), 0]) == "a cat"


def test_the_image_matters(prompted: PromptedModel) -> None:
    other = prompted.read(-image(), QUESTION).log_probabilities
    assert not torch.allclose(prompted.read(image(), QUESTION).log_probabilities, other, atol=1e-3)


def test_the_first_smolvlms_are_of_idefics3s_class(tmp_path: Path) -> None:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    torch.manual_seed(0)
    config = {k: v for k, v in TINY["smolvlm"].config.items() if k != "vision_config"}
    vision = TINY["smolvlm"].config["vision_config"] | {"model_type": "idefics3_vision"}
    made = Idefics3ForConditionalGeneration(Idefics3Config(vision_config=vision, **config)).eval()
    made.save_pretrained(tmp_path)
    from tests.profiler.models.frozen.checkpoints import character_tokenizer

    character_tokenizer().save_pretrained(tmp_path)
    built, tokenizer = load_prompted(TINY["smolvlm"], tmp_path, dtype=torch.float32)
    assert type(built) is Idefics3ForConditionalGeneration
    prompted = PromptedModel(TINY["smolvlm"], built, tokenizer)
    name = prompted.name_tokens("cat")
    (found,) = prompted.likelihoods(prompted.read(image(), QUESTION), [name]).tolist()
    with torch.no_grad():
        logits = built(**library_inputs(prompted, name)).logits[0].log_softmax(-1)
    expected = logits[-len(name) - 1 : -1][range(len(name)), name].sum().item()
    assert found == pytest.approx(expected, abs=2e-3)


def test_folders_that_hold_no_such_model(tmp_path: Path) -> None:
    def refused(text: str, name: str = "smolvlm") -> None:
        with pytest.raises(InputError, match=text) as error:
            load_prompted(TINY[name], tmp_path, dtype=torch.float32)
        assert "\n" not in str(error.value)

    refused("holds no smolvlm")
    prompted_folder("paligemma", tmp_path)
    refused("is of type 'paligemma', smolvlm is 'smolvlm'")
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["text_config"]["num_hidden_layers"] = 3
    file.write_text(json.dumps(content))
    refused("another model than paligemma: text_config.num_hidden_layers is 3", "paligemma")
    with pytest.raises(InputError, match="is no folder; smolvlm needs the folder"):
        load_prompted(TINY["smolvlm"], file, dtype=torch.float32)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    refused("has neither", "mobilevlm")
    torch.save({"model.norm.weight": torch.zeros(32)}, tmp_path / "pytorch_model.bin")
    refused("it lacks 'model.embed_tokens.weight'", "mobilevlm")
