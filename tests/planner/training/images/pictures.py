"""Pictures, folders and checks that the tests of images share."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from planner.training.images.load import load_data
from profiler.errors import InputError

SHAPE = {"image_size": 32, "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}


def paint(path, size=(40, 30), seed=0):
    """A smooth picture without symmetry, so that crops and mirrors show."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def refused(spec, words, **options):
    with pytest.raises(InputError, match=words) as caught:
        load_data(str(spec), **{**SHAPE, **options})
    assert "\n" not in str(caught.value)


def drain(batches):
    return [(x.clone(), y.clone()) for x, y in batches]
