"""Crop rules, with torchvision as the second implementation."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pictures import paint
from PIL import Image
from torchvision.transforms import v2

from planner.training.images.crops import centre_crop, random_crop


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (255, 255)])
def test_the_centre_crop_is_resize_255_and_center_crop_224(tmp_path, size):
    with Image.open(paint(tmp_path / "p.png", size)) as opened:
        picture = opened.convert("RGB")
    width, height = size
    box = centre_crop(width, height, random.Random(0))
    ours = picture.resize((224, 224), Image.Resampling.BILINEAR, box=box)
    theirs = v2.Compose([v2.Resize(255), v2.CenterCrop(224)])(picture)
    difference = np.abs(np.asarray(ours, float) - np.asarray(theirs, float))
    # resizing then cropping at whole pixels shifts by half a pixel at most
    assert difference.mean() < 1.5


@pytest.mark.parametrize("size", [(640, 480), (100, 100), (50, 400), (400, 50)])
def test_random_crop_keeps_to_its_ranges(size):
    width, height = size
    for draw in range(200):
        left, top, right, bottom = random_crop(width, height, random.Random(draw))
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
        area = (right - left) * (bottom - top) / (width * height)
        assert area >= 0.8 - 1e-9 or max(size) > 2 * min(size)


def test_random_crop_has_torchvisions_distribution():
    torch.manual_seed(0)
    picture = torch.zeros(3, 480, 640)
    theirs = [
        v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(8, scale=(0.8, 1.0)), [picture])
        for _ in range(2000)
    ]
    ours = [random_crop(640, 480, random.Random(draw)) for draw in range(2000)]
    widths = [right - left for left, _, right, _ in ours]
    tops = [top for _, top, _, _ in ours]
    assert np.mean(widths) == pytest.approx(np.mean([p["width"] for p in theirs]), rel=0.01)
    assert np.std(widths) == pytest.approx(np.std([p["width"] for p in theirs]), rel=0.06)
    assert np.mean(tops) == pytest.approx(np.mean([p["top"] for p in theirs]), rel=0.08)
