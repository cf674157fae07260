"""Every method on small real backbones: it learns what it should and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_backbones as small
import torch

from profiler.models.methods import get_method
from profiler.models.methods.base import Method

EVERYWHERE = (
    *("full", "head", "bitfit", "lora", "dora", "adalora", "galore", "ssf", "ln_tune"),
    *("partial_2", "side"),
)
ONLY_ON = {
    "bn_head": ("tiny_vit", "resnet", "mobilenet", "mambavision"),
    "qlora": ("vit", "tiny_vit", "vim", "mambavision"),
    "adaptformer": ("vit", "tiny_vit", "vim", "mambavision"),
    "vpt_shallow": ("vit", "vim"),
    "vpt_deep": ("vit", "vim"),
    "prefix": ("vit", "mambavision"),
}
PAIRS = [(method, backbone) for method in EVERYWHERE for backbone in small.BACKBONES] + [
    (method, backbone) for method, backbones in ONLY_ON.items() for backbone in backbones
]


def _prepared(name: str, backbone: str) -> tuple[Method, torch.nn.Module]:
    method = get_method(name)
    return method, method.apply(small.make(backbone), small.workload(name))


@pytest.mark.parametrize(("name", "backbone"), PAIRS)
def test_learns_the_right_parameters_and_loads_back(
    name: str, backbone: str, tmp_path: Path
) -> None:
    load = small.workload(name)
    method, model = _prepared(name, backbone)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    buffers = {n for n, _ in model.named_buffers()}
    before = small.state(model)
    losses = small.train(model, method, load, steps=4, rate=1e-3)
    after = small.state(model)

    assert losses[-1] < losses[0]
    moved = {n for n, value in after.items() if not torch.equal(value, before[n])}
    assert moved - learning - buffers == set()
    assert any("head" in n or "fc" in n or "classifier" in n for n in moved)
    never = {n for n in learning if n not in moved}
    assert len(never) <= 0.1 * len(learning), f"did not move: {sorted(never)[:5]}"

    method.save(model, tmp_path)
    _, fresh = _prepared(name, backbone)
    method.load(fresh, tmp_path)
    if name == "adalora":  # the ranks that were cut are gone: sums of fewer terms
        torch.testing.assert_close(small.outputs(fresh), small.outputs(model))
    else:
        assert torch.equal(small.outputs(fresh), small.outputs(model))
