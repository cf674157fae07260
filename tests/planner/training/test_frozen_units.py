"""Training on stored activations: the same steps as on images, refused where it is not exact."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from trainings import digits, workload

from planner.training.features import cached_features
from planner.training.frozen_units import FrozenUnits
from planner.training.images.image_set import ImageSet
from planner.training.zero_classifier import zero_classifier
from profiler.models.build import BuiltModel, build_model
from profiler.training_step import TrainingStep, make_optimizer

CASES = [
    ("test_efficientnet", "partial_2"),
    ("test_efficientnet", "side"),
    ("test_vit", "partial_2"),
    ("test_vit", "side"),
]


def built(model: str, method: str, **changes: object) -> BuiltModel:
    """Return a model as a probe starts it: with a classifier of zeros."""
    torch.manual_seed(0)
    made = build_model(workload(model=model, method=method, rank=None, **changes))
    zero_classifier(made.model)
    made.model.train()
    return made


def images(count: int = 8) -> ImageSet:
    return digits(32, train_images=40, test_images=20).test.select(range(count))


def pair(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images, labels


def stacked(some: ImageSet) -> torch.Tensor:
    return torch.stack([some[index][0] for index in range(len(some))])


@pytest.mark.parametrize(("model", "method"), CASES)
def test_steps_on_rows_are_those_on_images(model: str, method: str, tmp_path: Path) -> None:
    """Three optimizer steps of both, with equal weights at the start."""
    some = images()
    labels = torch.tensor(some.labels)
    finals = []
    for on_rows in (False, True):
        made = built(model, method, frozen_batch_norm=True)
        inputs = stacked(some)
        if on_rows:
            before = [p.detach().clone() for p in made.model.parameters()]
            units = FrozenUnits.of(made, inputs[:4])
            assert all(map(torch.equal, before, made.model.parameters()))
            assert units is not None
            assert units.keeps_all == (method == "side")
            found = cached_features(made, units, some, folder=tmp_path)
            inputs = torch.stack([found[index][0] for index in range(len(found))])
            assert inputs.shape == (len(some), units.row_numbers)
            units.install(made)
        load = workload(model=model, method=method, rank=None, micro_batch=8, accumulation=1)
        step = TrainingStep(made.model, make_optimizer(made.model, load, learning_rate=1e-2), load)
        fetch = partial(pair, inputs, labels)
        losses = [float(step.run([fetch])) for _ in range(3)]
        learned = [p.detach().clone() for p in made.model.parameters() if p.requires_grad]
        finals.append((losses, learned))
    assert finals[0][0] == pytest.approx(finals[1][0], rel=1e-4)
    assert finals[0][0][0] != finals[0][0][2]
    for first, second in zip(finals[0][1], finals[1][1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "bitfit", "bn_head"])
def test_a_model_that_learns_in_its_first_unit_has_no_frozen_units(method: str) -> None:
    made = built("test_efficientnet", method, frozen_batch_norm=True)
    assert FrozenUnits.of(made, stacked(images(4))) is None


def test_batch_norm_that_normalises_by_the_batch_is_found() -> None:
    made = built("test_efficientnet", "partial_2")
    assert FrozenUnits.of(made, stacked(images(4))) is None


def test_undoing_gives_the_model_back() -> None:
    made = built("test_vit", "partial_2")
    some = stacked(images(4))
    before = made.model(some)
    units = FrozenUnits.of(made, some)
    assert units is not None
    undo = units.install(made)
    undo()
    assert torch.equal(made.model(some), before)
