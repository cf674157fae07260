"""The parts of a data set: stratified, disjoint, and from the seed alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.training.images.split import split_off_selection, split_off_test
from profiler.errors import InputError, UsageError

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80)


@given(LABELS, st.integers(0, 3))
def test_selection_takes_a_tenth_of_each_class(labels, seed):
    counts = Counter(labels)
    if max(counts.values()) < 2:
        with pytest.raises(InputError, match="no class has two training images"):
            split_off_selection(labels, seed)
        return
    train, selection = split_off_selection(labels, seed)
    assert sorted([*train, *selection]) == list(range(len(labels)))
    assert train == sorted(train)
    assert selection == sorted(selection)
    assert selection
    taken = Counter(labels[i] for i in selection)
    left = Counter(labels[i] for i in train)
    assert left.keys() == counts.keys()  # no class is lost to the training
    if max(counts.values()) < 3:
        assert len(selection) == 1
        return
    for label, count in counts.items():
        assert taken[label] == (max(1, round(count / 10)) if count >= 3 else 0)
    assert split_off_selection(labels, seed) == (train, selection)


def test_test_images_are_those_of_earlier_versions():
    """The rule of the versions without a selection part, written out again."""
    labels = [i * i % 7 for i in range(200)]
    expected = []
    for label in sorted(set(labels)):
        group = [i for i, other in enumerate(labels) if other == label]
        random.Random(f"5/{label}").shuffle(group)
        expected += group[: max(1, round(0.2 * len(group)))]
    assert split_off_test(labels, 5)[1] == sorted(expected)


def test_training_whole_restores_the_order(digits):
    whole = digits.training_whole()
    taken = list(digits.selection_positions)
    assert [whole.labels[i] for i in taken] == digits.selection.labels
    kept = [i for i in range(len(whole)) if i not in set(taken)]
    assert np.array_equal([whole.images[i] for i in kept], digits.train.images)
    assert np.array_equal([whole.images[i] for i in taken], digits.selection.images)
    assert (whole.mirror, whole.crop) == (digits.train.mirror, digits.train.crop)


def test_images_per_class_and_the_numbers_of_the_source(digits):
    assert list(digits.images_per_class) == list(np.bincount(digits.train.labels))
    source = digits.source
    assert (source.train_images, source.selection_images, source.held_out_images) == (
        len(digits.train), len(digits.selection), 359
    )  # fmt: skip
    assert str(source) == (
        f"digits: {len(digits.train)} training images, {len(digits.selection)} for selection, "
        "359 for the test"
    )


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: (*p[:-1], p[0])])
def test_positions_that_do_not_fit(digits, change):
    with pytest.raises(UsageError, match="selection_positions must be"):
        replace(digits, selection_positions=change(digits.selection_positions))
    with pytest.raises(UsageError, match="selection_positions must be"):
        replace(digits, train=digits.train.select(range(5)))
