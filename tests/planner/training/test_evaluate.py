"""Accuracy on held-out images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from trainings import digits

from planner.training.evaluate import accuracy


def test_accuracy_is_the_share_of_right_answers_and_leaves_the_mode() -> None:
    test = digits(32, train_images=40, test_images=20).test

    class Three(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    model = Three().train()
    share = sum(label == 3 for label in test.labels) / len(test)
    assert 0 < share < 1
    assert accuracy(model, test, batch_size=7) == share
    assert model.training
