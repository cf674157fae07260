"""Weights from files as people have them: wrappers, prefixes, other sizes, no weights at all."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from profiler.errors import InputError
from profiler.models import backbones

NAME = "test_vit"
SIZE = 32


@cache
def _model(classes: int, size: int, name: str) -> nn.Module:
    return backbones.build(name, num_classes=classes, image_size=size)


def new_model(classes: int = 5, size: int = SIZE, name: str = NAME) -> nn.Module:
    return copy.deepcopy(_model(classes, size, name))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return new_model().state_dict()


def load(path: Path, **options: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    model = new_model(**options)
    source = backbones.load_weights(model, options.get("name", NAME), weights=path)
    assert source.kind == "file"
    return model.state_dict(), source.notes


def saved(content: object, folder: Path, name: str = "weights.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(v, second[n]) for n, v in first.items()
    )


def refused(path: Path, **options: Any) -> str:
    """Return the message of the refusal, on real tensors and on shapes alone."""
    messages = []
    for device in ("cpu", "meta"):
        model = backbones.build(NAME, num_classes=5, image_size=SIZE, device=device, **options)
        with pytest.raises(InputError) as caught:
            backbones.load_weights(model, NAME, weights=path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert len(messages[0].replace(str(path.parent), "")) <= 240
    return messages[0]


# ---- wrappers and prefixes -----------------------------------------------------------------------

WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "net", "network", "weights", "params", "teacher"),
    *("model_state", "my_own_key", "module"),
)
PREFIXES = (
    *("module.", "model.", "backbone.", "module.model.", "_orig_mod.", "module._orig_mod."),
    *("model.backbone.", "encoder.", "my.own.wrapper."),
)


@settings(max_examples=15, deadline=None)
@given(
    wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=2),
    prefix=st.sampled_from(["", *PREFIXES]),
)
def test_any_wrapper_and_any_prefix_are_recognised_and_named(
    tmp_path_factory: pytest.TempPathFactory,
    state: dict[str, Tensor],
    wrappers: list[str],
    prefix: str,
) -> None:
    content: dict[str, Any] = {f"{prefix}{name}": value for name, value in state.items()}
    for wrapper in wrappers:
        content = {"epoch": 3, wrapper: content, "best": torch.tensor(0.5)}
    path = saved(content, tmp_path_factory.mktemp("weights"))
    loaded, notes = load(path)
    assert same(loaded, state)
    text = " ".join(notes)
    if wrappers:
        assert repr(".".join(reversed(wrappers))) in text
    if prefix:
        assert repr(prefix) in text
    if not wrappers and not prefix:
        assert notes == ()


def test_averaged_weights_are_taken_on_request_only(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    averaged = {name: value + 1 for name, value in state.items()}
    for key in ("model_ema", "ema_state_dict", "state_dict_ema"):
        path = saved({key: averaged, "model": state}, tmp_path)
        loaded, notes = load(path)
        assert same(loaded, state)
        assert f"weights.pth::{key}" in " ".join(notes)
        loaded, notes = load(Path(f"{path}::{key}"))
        assert same(loaded, averaged)
        assert "EMA" in " ".join(notes)
    alone, notes = load(saved({"model_ema": averaged}, tmp_path))
    assert same(alone, averaged)
    assert "EMA" in " ".join(notes)


def test_an_average_beside_the_model_in_one_dictionary(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    flat = {f"ema_model.{n}": v + 1 for n, v in state.items()}
    flat |= {f"model.{n}": v for n, v in state.items()}
    path = saved({"state_dict": flat}, tmp_path)
    assert same(load(path)[0], state)
    averaged, _ = load(Path(f"{path}::ema_model"))
    assert torch.equal(averaged["norm.weight"], state["norm.weight"] + 1)


def test_an_unknown_entry_is_refused_with_the_known_ones(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = saved({"model": state}, tmp_path)
    with pytest.raises(InputError, match=r"no entry 'ema'; its entries with tensors: 'model'"):
        backbones.load_weights(new_model(), NAME, weights=Path(f"{path}::ema"))


class Configuration(dict[str, int]):
    """Stands for the configuration class of a training framework."""


Configuration.__module__, Configuration.__qualname__ = "yacs.config", "CfgNode"


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, path=Path("x"), nested=argparse.Namespace(a=1)),
        {"accuracy": np.float64(0.9), "epoch": np.int64(3), "history": np.arange(3.0)},
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        Path("runs/1"),
        [datetime.datetime(2024, 1, 1), datetime.timedelta(1), datetime.date(2024, 1, 1)],
        {1, 2},
        {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}}, "param_groups": []},
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("legacy", [False, True])
def test_plain_data_beside_the_weights_is_ignored(
    tmp_path: Path, state: dict[str, Tensor], beside: object, legacy: bool
) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(
        {"args": beside, "state_dict": state}, path, _use_new_zipfile_serialization=not legacy
    )
    assert same(load(path)[0], state)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin", "w"])
def test_the_content_decides_and_not_the_suffix(
    tmp_path: Path, state: dict[str, Tensor], name: str
) -> None:
    save_file(state, tmp_path / name)
    assert same(load(tmp_path / name)[0], state)
    assert same(load(saved(state, tmp_path, name))[0], state)


# ---- timm's own conversions ----------------------------------------------------------------------


def test_position_embeddings_are_resampled_as_timm_does(tmp_path: Path) -> None:
    torch.manual_seed(2)
    larger = new_model(size=64).state_dict()
    loaded, notes = load(saved(larger, tmp_path))
    from timm.models.vision_transformer import checkpoint_filter_fn

    expected = checkpoint_filter_fn(dict(larger), new_model())
    assert same(loaded, {name: expected[name] for name in loaded})
    assert any("resampled 'pos_embed'" in note for note in notes)


@pytest.mark.filterwarnings("ignore")  # timm's resampling passes a tensor that is not contiguous
def test_a_file_gives_the_model_that_timms_hub_path_gives(tmp_path: Path) -> None:
    """timm loads the same state dict through its own path, filter included."""
    for name in ("swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"):
        torch.manual_seed(0)
        state = timm.create_model(name, img_size=64, num_classes=3, **small(name)).state_dict()
        state["mask_token"] = torch.zeros(1, 192)
        overlay = {"file": str(saved(state, tmp_path)), "num_classes": 3}
        if name.startswith("swin"):  # it has no such token, and timm refuses it there
            del state["mask_token"]
            saved(state, tmp_path)
        expected = timm.create_model(
            name, img_size=96, num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay,
            **small(name),
        )  # fmt: skip
        model = timm.create_model(name, img_size=96, num_classes=3, **small(name))
        backbones.load_weights(model, name, weights=tmp_path / "weights.pth")
        assert same(model.state_dict(), expected.state_dict())


def small(name: str) -> dict[str, Any]:
    return {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {"depth": 1}


def test_names_of_another_code_base_are_converted(tmp_path: Path) -> None:
    """DINOv2 names the halves of its gated MLP ``w12`` and ``w3`` and has register tokens."""
    name = "vit_giant_patch14_reg4_dinov2"
    torch.manual_seed(0)
    tiny = {"img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 2}
    source = timm.create_model(name, num_classes=0, **tiny).state_dict()
    published = {n.replace("fc1", "w12").replace("fc2", "w3"): v for n, v in source.items()}
    published["register_tokens"] = published.pop("reg_token")
    published["mask_token"] = torch.zeros(1, 24)
    published["pos_embed"] = torch.cat([torch.ones(1, 1, 24), published["pos_embed"]], 1)
    model = timm.create_model(name, num_classes=2, **tiny)
    backbones.load_weights(model, name, weights=saved({"teacher": published}, tmp_path))
    found = model.state_dict()
    assert torch.equal(found["blocks.0.mlp.fc1.weight"], source["blocks.0.mlp.fc1.weight"])
    assert torch.equal(found["reg_token"], source["reg_token"])
    assert torch.equal(found["cls_token"], source["cls_token"] + 1)


def test_a_classifier_of_another_class_count_is_left_out_and_named(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    path = saved(state, tmp_path)
    loaded, notes = load(path, classes=7)
    assert loaded["head.weight"].shape[0] == 7
    assert torch.equal(loaded["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert "weights: the classifier of 5 classes was left out; a new one is trained" in notes


# ---- files that are refused ----------------------------------------------------------------------


def test_unknown_and_missing_tensors_are_refused_by_name(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    extra = {**state, "blocks.99.adapter.weight": torch.zeros(2)}
    assert "blocks.99.adapter.weight" in refused(saved(extra, tmp_path))
    less = {name: value for name, value in state.items() if name != "norm.weight"}
    assert "norm.weight" in refused(saved(less, tmp_path))
    wider = {**state, "norm.weight": torch.zeros(7)}
    message = refused(saved(wider, tmp_path))
    assert "norm.weight" in message
    assert "[7]" in message
    other = new_model(name="resnet18", size=64).state_dict()
    assert "none of its" in refused(saved(other, tmp_path))


@pytest.mark.parametrize("counter", ["mask_token", "total_ops", "blocks.0.total_params"])
def test_harmless_tensors_are_left_out_and_named(
    tmp_path: Path, state: dict[str, Tensor], counter: str
) -> None:
    loaded, notes = load(saved({**state, counter: torch.zeros(1)}, tmp_path))
    assert same(loaded, state)
    assert any(repr(counter) in note for note in notes)


BAD_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda value: torch.full_like(value, float("nan")),
    "infinite": lambda value: torch.full_like(value, -float("inf")),
    "int8": lambda value: value.to(torch.int8),
    "bool": lambda value: value > 0,
    "complex64": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "quantised": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "meta": lambda value: value.to("meta"),
    "float64": lambda value: torch.full_like(value, 1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_values_that_cannot_be_weights_are_refused_by_name(
    tmp_path: Path, state: dict[str, Tensor], kind: str
) -> None:
    for name in ("head.bias", "blocks.0.attn.qkv.weight"):
        with warnings.catch_warnings(action="ignore"):  # torch deprecates quantised tensors
            file = saved({**state, name: BAD_TENSORS[kind](state[name])}, tmp_path)
        message = refused(file)  # a warning would be an error
        assert repr(name) in message
        assert ("infinite" if kind == "float64" else kind) in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    loaded, _ = load(saved({name: value.to(dtype) for name, value in state.items()}, tmp_path))
    assert same(loaded, {name: value.to(dtype).to(value.dtype) for name, value in state.items()})


FILES = {
    "empty": (b"", "empty"),
    "page": (b"<!doctype html><title>404</title>", "a web page"),
    "error": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML document"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
    "text": ("Gewichte für das Modell\n".encode(), "a text file"),
    "json": (b'{"message": "Not Found"}', "a text file"),
    "gzip": (b"\x1f\x8b" + bytes(50), "gzip"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "noise": (bytes(range(256)) * 4, "damaged or no file of weights"),
    "cut": (b"PK\x03\x04" + bytes(100), "damaged zip archive"),
    "header": ((50).to_bytes(8, "little") + b'{"a":', "damaged safetensors"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_without_weights_is_refused_by_its_kind(tmp_path: Path, kind: str) -> None:
    content, expected = FILES[kind]
    (tmp_path / "weights.pth").write_bytes(content)
    assert expected in refused(tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore")  # torch deprecates its script archives
def test_archives_and_objects_without_weights_are_refused_by_their_kind(tmp_path: Path) -> None:
    np.savez(tmp_path / "flax.npz", a=np.zeros(2))
    assert "NumPy archive" in refused(tmp_path / "flax.npz")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "zip archive without weights" in refused(tmp_path / "other.zip")
    assert "pickled objects" in refused(saved(new_model(), tmp_path))
    for content in ([1, 2], torch.zeros(3), "text", None):
        assert "not the weights of a model by name" in refused(saved(content, tmp_path))
    for mapping in ({}, {"epoch": 1}, {"model": {"lr": 0.1}}):
        assert "holds no tensors by name" in refused(saved(mapping, tmp_path))
    script = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(script, tmp_path / "script.pt")
    assert "TorchScript" in refused(tmp_path / "script.pt")
    assert "does not exist" in refused(tmp_path / "none.pth")


class _Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
@pytest.mark.parametrize("call", ["mkdir", "eval", "exec"])
def test_no_payload_runs(tmp_path: Path, state: dict[str, Tensor], writer: str, call: str) -> None:
    proof, code = tmp_path / "proof", "__import__('os').mkdir({!r})"
    payloads = {
        "mkdir": _Payload(os.mkdir, str(proof)),
        "eval": _Payload(eval, code.format(str(proof))),
        "exec": _Payload(exec, code.format(str(proof))),
    }
    content, path = {**state, "args": payloads[call]}, tmp_path / "weights.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"args": payloads[call]}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    refused(path)
    assert not proof.exists()
    torch.load(path, weights_only=False) if writer != "pickle" else pickle.loads(path.read_bytes())
    assert proof.exists(), "the payload would have run"


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_loads(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor], data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": state}, buffer, _use_new_zipfile_serialization=data.draw(st.booleans())
    )
    content = bytearray(buffer.getvalue())
    content = content[: data.draw(st.integers(1, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "weights.pth"
    path.write_bytes(content)
    try:
        load(path)
    except InputError as error:
        assert "\n" not in str(error)


# ---- public reports ------------------------------------------------------------------------------


def test_a_checkpoint_without_a_classifier_loads_for_any_number_of_classes(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """huggingface/pytorch-image-models#2332: InternViT has no head, and num_classes=3 is given."""
    headless = {name: value for name, value in state.items() if not name.startswith("head.")}
    loaded, notes = load(saved(headless, tmp_path), classes=3)
    assert all(torch.equal(loaded[name], value) for name, value in headless.items())
    assert loaded["head.weight"].shape[0] == 3
    assert any("classifier" in note for note in notes)


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", "module._orig_mod.module."])
def test_a_compiled_model_in_a_parallel_one_is_recognised(
    tmp_path: Path, state: dict[str, Tensor], prefix: str
) -> None:
    """huggingface/pytorch-image-models PR 2003: which prefix is outside is not known."""
    loaded, _ = load(saved({prefix + name: value for name, value in state.items()}, tmp_path))
    assert same(loaded, state)
