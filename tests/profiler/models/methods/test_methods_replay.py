"""Replayed peaks of every method against the real CPU allocator."""

from __future__ import annotations

import numpy as np
import pytest
import small_backbones as small
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from profiler.device_rules.cpu_allocator import memory_events, peak_and_growth
from profiler.devices.table import CPU
from profiler.models.build import build_model
from profiler.models.methods import get_method, method_names
from profiler.models.methods.qlora import FourBitLinear
from profiler.replay.fake_model import to_fake
from profiler.replay.step_replay import replay_step
from profiler.training_step import Batch, TrainingStep, make_optimizer
from profiler.workload import Candidate, Workload

WITHOUT_BATCHNORM = [name for name in method_names() if name != "bn_head"]
PAIRS = [("test_vit", method, "fp32") for method in WITHOUT_BATCHNORM]
PAIRS += [("test_vit", method, "bf16") for method in ("lora", "qlora")]
PAIRS += [("test_resnet", method, "fp32") for method in ("bn_head", "lora", "dora", "adalora")]


def replayed_peak(load: Workload) -> int:
    log = replay_step(Candidate(workload=load), device=CPU)
    changes = np.zeros(log.ticks + 3, dtype=np.int64)
    np.add.at(changes, log.birth, log.nbytes)
    np.add.at(changes, log.death, -log.nbytes)
    return int(changes.cumsum().max())


def real_peak(load: Workload) -> int:
    built = build_model(load)
    model = built.model
    optimizer = make_optimizer(model, load, method=built.method, foreach=False)
    step = TrainingStep(model, optimizer, load, method=built.method)

    def fetch() -> Batch:
        images = torch.randn(load.micro_batch, 3, load.image_size, load.image_size)
        return images, torch.zeros(load.micro_batch, dtype=torch.long)

    step.run([fetch])
    events = memory_events(lambda: step.run([fetch]))
    held = [*model.parameters(), *model.buffers()]
    held += [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    if load.method == "adalora":
        allocator = model.base_model.rankallocator
        held += [*allocator.exp_avg_ipt.values(), *allocator.exp_avg_unc.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(storages.values()) + peak_and_growth(events)[0]


@pytest.mark.parametrize(("model", "method", "precision"), PAIRS)
def test_replayed_peak_is_the_allocators(model: str, method: str, precision: str) -> None:
    load = Workload(
        model=model,
        method=method,
        precision=precision,
        micro_batch=4,
        num_classes=10,
        image_size=64,
    )
    assert replayed_peak(load) == pytest.approx(real_peak(load), rel=0.002)


def test_meta_weights_of_qlora_have_the_bytes_of_real_ones() -> None:
    load = Workload(model="test_vit", method="qlora", num_classes=10, image_size=64)
    layers = {
        device: [
            (name, buffer, tensor.shape, tensor.dtype)
            for name, module in build_model(load, device=device).model.named_modules()
            if isinstance(module, FourBitLinear)
            for buffer, tensor in [
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ]
        ]
        for device in ("cpu", "meta")
    }
    assert layers["cpu"] == layers["meta"]
    assert len(layers["cpu"]) > 6


@pytest.mark.parametrize("name", WITHOUT_BATCHNORM)
def test_methods_apply_to_fake_weights(name: str) -> None:
    load = small.workload(name)
    with torch.device("meta"):
        model = small.vit()
    with FakeTensorMode(allow_non_fake_inputs=False):
        to_fake(model)
        method = get_method(name)
        model = method.apply(model, load)
        assert all(isinstance(p.data, FakeTensor) for p in model.parameters())
        assert {p.device.type for p in model.parameters()} == {"cpu"}
        step = TrainingStep(model, make_optimizer(model, load, method=method), load, method=method)
        step.run([lambda: (torch.randn(2, 3, 64, 64), torch.zeros(2, dtype=torch.long))])
