"""Memory of modules that are no timm classifiers, against the CPU allocator in real steps."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner import estimate
from profiler.device_rules.cpu_allocator import peak_during
from profiler.devices.table import lookup, workspaces_of
from profiler.errors import UsageError
from profiler.records import OWNERS
from profiler.replay.module_replay import ModuleStep


class Language(nn.Module):
    """A language model with tied weights, which returns its loss in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, 500)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.layers(self.embed(ids)))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(100, 256), nn.GELU(), nn.Linear(256, 64))
        self.right = nn.Sequential(nn.Linear(50, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) @ self.right(right).T


class Gate(nn.Module):
    """A linear layer on a transposed input, which adds its bias in place (gMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mix(x.transpose(1, 2)).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layers = nn.LSTM(32, 48, batch_first=True, **options)
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][..., :48].mean(dim=1))


def segmentation() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2),
        nn.Conv2d(16, 5, 1),
    )  # fmt: skip


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


CASES: dict[str, Callable[[], ModuleStep]] = {
    "language": lambda: ModuleStep(
        module=Language(),
        batch={"ids": torch.randint(500, (8, 32)), "labels": torch.randint(500, (8, 32))},
    ),
    "two towers": lambda: ModuleStep(
        module=TwoTowers(),
        batch=((torch.rand(64, 100), torch.rand(64, 50)), torch.arange(64)),
        loss=nn.CrossEntropyLoss(),
    ),
    "segmentation": lambda: ModuleStep(
        module=segmentation(),
        batch=(torch.rand(4, 3, 64, 64), torch.randint(5, (4, 64, 64))),
        loss=nn.CrossEntropyLoss(),
    ),
    "gate": lambda: ModuleStep(
        module=nn.Sequential(Gate(), Gate()),
        batch=(torch.rand(16, 64, 256), torch.rand(16, 64, 256)),
        loss=mean_square,
    ),
    "lstm": lambda: ModuleStep(
        module=Recurrent(num_layers=2),
        batch=(torch.rand(8, 64, 32), torch.randint(4, (8,))),
        loss=nn.CrossEntropyLoss(),
    ),
    "lstm both ways": lambda: ModuleStep(
        module=Recurrent(bidirectional=True),
        batch=(torch.rand(8, 64, 32), torch.randint(4, (8,))),
        loss=nn.CrossEntropyLoss(),
    ),
    "autoencoder": lambda: ModuleStep(
        module=nn.Sequential(nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 256)),
        batch=(torch.rand(128, 256), torch.rand(128, 256)),
        loss=mean_square,
    ),
    "autoencoder of its input": lambda: ModuleStep(
        module=nn.Sequential(nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 256)),
        batch=(torch.rand(1024, 256),) * 2,
        loss=mean_square,
    ),
}


def real_peak(step: ModuleStep) -> int:
    """Return the CPU allocator's peak of the third real step, from before the module was made."""
    made: dict[str, Any] = {}

    def one_step() -> None:
        batch = copy.deepcopy(step.batch)  # a tensor that occurs twice is copied once
        loss = step.loss_of(made["module"], batch)
        loss.backward()
        held = loss.detach()
        del loss
        made["optimizer"].step()
        made["optimizer"].zero_grad(set_to_none=True)
        del held

    def prepare() -> None:
        made["module"] = copy.deepcopy(step.module)
        made["optimizer"] = torch.optim.AdamW(
            made["module"].parameters(), lr=1e-3, weight_decay=0.05, foreach=False
        )
        one_step()
        one_step()

    return peak_during(prepare, one_step)


@pytest.mark.parametrize("name", CASES)
def test_the_peak_on_a_cpu_is_that_of_its_allocator(name: str) -> None:
    torch.manual_seed(0)
    step = CASES[name]()
    before = {key: value.clone() for key, value in step.module.state_dict().items()}
    found = estimate(step.module, step.batch, loss=step.loss, device="cpu")
    assert found.memory.peak_bytes == pytest.approx(real_peak(step), rel=0.005)
    assert all(torch.equal(value, before[key]) for key, value in step.module.state_dict().items())


def test_the_tensors_at_the_peak_add_up_and_are_named() -> None:
    step = CASES["language"]()
    found = estimate(step.module, step.batch, device="rtx-3060", precision="bf16")
    sizes = [tensor.nbytes for tensor in found.tensors]
    # the rest are the workspaces of cuBLAS, which are no tensors; backward adds no bias
    workspaces = workspaces_of(lookup("rtx-3060"))[:3]
    assert sum(sizes) == found.memory.peak_bytes - sum(workspaces)
    assert sizes == sorted(sizes, reverse=True)
    named = {tensor.name: tensor for tensor in found.tensors if tensor.name}
    assert set(named) == {name for name, _ in step.module.named_parameters()}
    assert named["embed.weight"].shape == (500, 64)
    assert {tensor.module for tensor in found.tensors} > {"", "layers.layers.0.linear1"}
    assert found.fits() and not found.fits(10**6)
    assert found.fits("2GB") and not found.fits("1MB")
    with pytest.raises(ValueError, match="2 gigs"):
        found.fits("2 gigs")
    assert found.to_json()["memory"]["device_bytes"] == found.memory.device_bytes


class ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x[x > 0.5].sum() * float(x[0].item())


def test_what_cannot_be_estimated_is_refused_in_one_line() -> None:
    linear, x = nn.Linear(4, 4), torch.rand(2, 4)
    with pytest.raises(UsageError, match="depends on the values of tensors"):
        estimate(ReadsValues(), x, device="cpu")
    with pytest.raises(UsageError, match="returns no scalar"):
        estimate(linear, x, device="cpu")
    with pytest.raises(UsageError, match="a pair"):
        estimate(linear, x, loss=mean_square, device="cpu")
    with pytest.raises(UsageError, match="fails: RuntimeError: "):
        estimate(linear, (torch.rand(2, 3), x), loss=mean_square, device="cpu")
    with pytest.raises(UsageError, match="optimizer must be one of"):
        estimate(linear, (x, x), loss=mean_square, device="cpu", optimizer="lion")
    with pytest.raises(UsageError, match="no parameter"):
        estimate(nn.ReLU(), (x, x), loss=mean_square, device="cpu")


def test_predict_module_calls_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from planner.cli import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    net = torch.nn.Linear(8, 4)\n"
        "    return net, (torch.rand(2, 8), torch.zeros(2, dtype=torch.long)), "
        "torch.nn.CrossEntropyLoss()\n"
        "def wrong():\n"
        "    return 7\n"
    )

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(cli, ["predict", *arguments, "--json"])
        return done.exit_code, json.loads(done.stdout)

    code, found = run("--module", "my_own_net:make", "--device", "rtx-3060", "--vram", "1GB")
    assert (code, found["schema"]) == (0, "budgetplan.estimate/1")
    assert found["tensors"][0]["owner"] in OWNERS
    code, found = run("--module=my_own_net:make", "--device", "rtx-3060", "--vram", "1MiB")
    assert (code, found["error"]["kind"]) == (3, "infeasible")
    code, found = run("--module", "my_own_net:wrong")
    assert (code, "must return" in found["message"]) == (2, True)
    code, found = run("--module", "my_own_net:absent")
    assert (code, "AttributeError" in found["message"]) == (2, True)
