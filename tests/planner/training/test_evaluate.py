"""Accuracy on labelled images, over images and over classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from trainings import digits

from planner.training.evaluate import evaluate_images


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
    assert evaluate_images(model, test, batch_size=7).accuracy == share
    assert model.training


def test_the_mean_over_classes_does_not_weigh_classes_by_their_size() -> None:
    """Digits 0, 1, 2 and 7, most of them 2; the model calls everything a 2 or a 7."""
    test = digits(32).test
    of = {
        label: [i for i, each in enumerate(test.labels) if each == label] for label in (0, 1, 2, 7)
    }
    chosen = [*of[0][:2], *of[1][:3], *of[2][:20], *of[7][:5]]
    part = test.select(chosen)
    answers = iter([2] * 20 + [7] * 10)

    class FromList(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            said = torch.tensor([next(answers) for _ in images])
            return nn.functional.one_hot(said, 10).float()

    found = evaluate_images(FromList(), part, batch_size=7)
    # right: none of 0 and 1, the first 15 of the 20 twos, all 5 sevens
    assert found.accuracy == 20 / 30
    assert found.mean_class_accuracy == (0 + 0 + 15 / 20 + 1) / 4
    assert found.images == 30
