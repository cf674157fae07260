"""Small real backbones and a few training steps on them."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from profiler.models.backbones.mambavision import MambaVision
from profiler.models.backbones.vim import Vim
from profiler.models.methods import Method
from profiler.training_step import TrainingStep, make_optimizer
from profiler.workload import Workload

CLASSES = 5
SIZE = 64


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        depth=2,
        embed_dim=64,
        num_heads=2,
        img_size=SIZE,
        num_classes=CLASSES,
    )


def resnet() -> nn.Module:
    return timm.create_model(
        "resnet10t", channels=(8, 16, 32, 32), num_classes=CLASSES, zero_init_last=False
    )


def mobilenet() -> nn.Module:
    return timm.create_model("mobilenetv2_035", num_classes=CLASSES)


def tiny_vit() -> nn.Module:
    return timm.create_model(
        "tiny_vit_5m_224",
        num_classes=CLASSES,
        embed_dims=(16, 32, 32, 32),
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 2),
        window_sizes=(4, 4, 2, 2),
    )


def vim() -> nn.Module:
    return Vim(dim=32, depth=2, img_size=SIZE, num_classes=CLASSES)


def mambavision() -> nn.Module:
    return MambaVision(
        dim=16,
        stem_dim=8,
        depths=(1, 1, 2, 2),
        heads=(1, 1, 2, 2),
        windows=(8, 8, 4, 2),
        img_size=SIZE,
        num_classes=CLASSES,
    )


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "tiny_vit": tiny_vit,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "vim": vim,
    "mambavision": mambavision,
}


def make(name: str) -> nn.Module:
    """A backbone whose BatchNorm statistics are those of the data, as in a trained one."""
    torch.manual_seed(0)
    model = BACKBONES[name]().train()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(batch()[0])
    for norm in norms:
        norm.momentum = 0.1
    return model


def workload(method: str, **changes: object) -> Workload:
    base = Workload(model="small", method=method, image_size=SIZE, num_classes=CLASSES)
    return base.replace(micro_batch=8, **changes)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, SIZE, SIZE, generator=generator)
    return images, torch.arange(8) % CLASSES


def train(
    model: nn.Module, method: Method, load: Workload, *, steps: int, rate: float
) -> list[float]:
    method.on_training_start(model, total_steps=steps)
    optimizer = make_optimizer(model, load, method=method, learning_rate=rate)
    step = TrainingStep(model, optimizer, load, method=method)
    model.train()
    return [float(step.run([batch] * load.accumulation)) for _ in range(steps)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def outputs(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(batch()[0])
