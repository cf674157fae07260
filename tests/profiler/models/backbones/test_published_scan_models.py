"""Vim-S and MambaVision-T from files of the published form, with made-up values.

Vim: ``vim_s_midclstok_80p5acc.pth`` of hustvl/Vim-small-midclstok, a training checkpoint with the
key ``model``. MambaVision: ``mambavision_tiny_1k.pth.tar`` with the key ``state_dict``, and the
safetensors file of nvidia/MambaVision-T-1K, whose names begin with ``model.``.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from profiler.models import backbones
from profiler.models.backbones.mambavision import MambaVision
from tests.profiler.models.backbones.test_vim import published_shapes


def made_up(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors whose values tell them apart: all equal within a tensor."""
    return {name: torch.full(shape, 0.001 * i) for i, (name, shape) in enumerate(shapes.items())}


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    found = model.state_dict()
    return set(found) == set(state) and all(torch.equal(found[n], t) for n, t in state.items())


def test_vim_s_from_a_training_checkpoint(tmp_path: Path) -> None:
    state = made_up(published_shapes())
    path = tmp_path / "vim_s_midclstok_80p5acc.pth"
    beside = {"epoch": 299, "args": Namespace(model="vim_small"), "max_accuracy": 80.5}
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, **beside}, path)
    model = backbones.build("vim_s", num_classes=1000, image_size=224, device="cpu")
    source = backbones.load_weights(model, "vim_s", weights=path)
    assert source.kind == "file"
    assert same(model, state)


@pytest.mark.parametrize("form", ["pth.tar", "safetensors"])
def test_mambavision_t(tmp_path: Path, form: str) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in MambaVision().state_dict().items()}
    state = made_up(shapes)
    counts = [name for name in state if name.endswith("num_batches_tracked")]
    state |= {name: torch.tensor(7) for name in counts}
    path = tmp_path / f"mambavision_tiny_1k.{form}"
    if form == "pth.tar":
        beside = {"epoch": 310, "arch": "mamba_vision_T", "metric": 82.3, "version": 2}
        torch.save({"state_dict": state, **beside}, path)
    else:
        save_file({f"model.{name}": tensor for name, tensor in state.items()}, path)
    model = backbones.build("mambavision_t", num_classes=1000, image_size=224, device="cpu")
    assert backbones.load_weights(model, "mambavision_t", weights=path).kind == "file"
    assert same(model, state)
