"""Batches: their order, their augmentations, and nothing of global generators."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import SHAPE, drain

from planner.training.images.batches import batch_loader
from planner.training.images.crops import whole_image
from planner.training.images.image_set import ImageSet, InputFormat
from planner.training.images.load import load_data
from profiler.errors import UsageError


def equal(a, b):
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_batches_depend_on_seed_and_epoch_alone(flat):
    train = load_data(str(flat), **SHAPE).train
    options = {"batch_size": 7, "shuffle": True, "drop_last": False}
    first = batch_loader(train, seed=3, **options)
    epochs = [drain(first), drain(first)]
    torch.manual_seed(99)
    random.seed(99)
    again = batch_loader(train, seed=3, **options)
    assert equal(drain(again), epochs[0])
    assert equal(drain(again), epochs[1])
    assert equal(drain(batch_loader(train, seed=3, epoch=1, **options)), epochs[1])
    assert not equal(epochs[0], epochs[1])
    assert not equal(drain(batch_loader(train, seed=4, **options)), epochs[0])


def test_batches_leave_the_global_generators_alone(flat):
    train = load_data(str(flat), **SHAPE).train
    before = torch.get_rng_state(), random.getstate()
    drain(batch_loader(train, batch_size=4, shuffle=True, seed=0, drop_last=False))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_an_epoch_visits_each_image_once(digits):
    part = digits.test.sample(50, seed=0)
    batches = drain(batch_loader(part, batch_size=16, shuffle=True, seed=0, drop_last=False))
    assert [len(y) for _, y in batches] == [16, 16, 16, 2]
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == sorted(part.labels)
    x, y = batches[0]
    assert x.shape == (16, 3, 32, 32)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert len(drain(batch_loader(part, batch_size=16, shuffle=True, seed=0, drop_last=True))) == 3


def order(part, seed=0, epochs=1, **options):
    loader = batch_loader(
        part, batch_size=7, shuffle=True, seed=seed, drop_last=False, balance=True, **options
    )
    return [[index for index, _ in loader.sampler] for _ in range(epochs)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5))
def test_balanced_epochs_show_each_class_equally_often(labels, seed):
    shape = InputFormat(image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
    part = ImageSet(
        images=[np.zeros((2, 2), np.uint8)] * len(labels),
        labels=labels, input_format=shape, crop=whole_image, mirror=False,
    )  # fmt: skip
    first, second = order(part, seed, epochs=2)
    for epoch in (first, second):
        assert len(epoch) == len(labels)
        shown = Counter(labels[index] for index in epoch)
        assert shown.keys() <= set(labels)
        assert max(shown.values()) - min(shown[label] for label in set(labels)) <= 1
        for label in set(labels):  # no image a second time before all of its class were shown
            times = Counter(epoch)
            of_class = [times[i] for i, other in enumerate(labels) if other == label]
            assert max(of_class) - min(of_class) <= 1
    assert order(part, seed) == [first]
    assert order(part, seed, epoch=1) == [second]
    assert order(part, seed, skip=3) == [first[3:]]


def test_balanced_batches_need_a_random_order(digits):
    with pytest.raises(UsageError, match="got shuffle=False"):
        batch_loader(digits.test, batch_size=4, shuffle=False, seed=0, drop_last=True, balance=True)


def test_batches_without_balance_are_those_of_earlier_versions(digits):
    loader = batch_loader(digits.test, batch_size=4, shuffle=True, seed=3, drop_last=True, epoch=2)
    rng, expected = random.Random("3/2"), list(range(359))
    rng.shuffle(expected)
    assert list(loader.sampler) == [(index, rng.getrandbits(32)) for index in expected]


def test_unshuffled_batches_are_in_order(digits):
    part = digits.test.select(range(10))
    (batch,) = drain(batch_loader(part, batch_size=10, shuffle=False, seed=5, drop_last=False))
    assert batch[1].tolist() == part.labels


def test_impossible_batches(digits):
    part = digits.test.sample(5, seed=0)
    with pytest.raises(UsageError, match="larger than the data set of 5 images"):
        batch_loader(part, batch_size=6, shuffle=True, seed=0, drop_last=True)
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        batch_loader(part, batch_size=0, shuffle=True, seed=0, drop_last=False)
