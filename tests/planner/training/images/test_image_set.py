"""Images as tensors: mirrored, normalised, from every mode of Pillow."""

from __future__ import annotations

from dataclasses import replace

import torch
from pictures import SHAPE

from planner.training.images.crops import whole_image
from planner.training.images.load import load_data


def test_training_pictures_are_mirrored_half_of_the_time(flat):
    train = load_data(str(flat), **SHAPE).train
    uncropped = replace(train, crop=whole_image)
    plain = replace(uncropped, mirror=False)[0][0]
    mirrored = 0
    for draw in range(400):
        image = uncropped[0, draw][0]
        assert torch.equal(image, plain) or torch.equal(image, plain.flip(2))
        mirrored += not torch.equal(image, plain)
    assert 160 < mirrored < 240  # four standard deviations
