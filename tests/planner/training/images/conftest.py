from __future__ import annotations

import pytest
from pictures import SHAPE, paint

from planner.training.images.load import load_data


@pytest.fixture
def flat(tmp_path):
    for c, name in enumerate(["cat", "dog", "emu"]):
        for i in range(10):
            paint(tmp_path / "pets" / name / f"{i}.png", seed=10 * c + i)
    return tmp_path / "pets"


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", **SHAPE)
