"""Small nets pretrained on rendered letters, since no package holds such weights.

The nets are timm's ``test_vit2``, ``test_convnext`` and ``test_resnet`` (0.3 to 0.5 M parameters)
at 64 px. They are trained on lower-case Latin, Greek and Cyrillic letters of 15 fonts,
drawn anew for every batch. The sets that they are carried over to have none of these classes:
digits, silhouettes and capital letters.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
from glyphs import FONTS, SIDE, draw_letter, font_folder

IMAGE_SIZE = 64
STEPS = {"test_vit2": 6000, "test_convnext": 3000, "test_resnet": 3000}
"""Steps of the pretraining of each net."""

LATIN = "abcdefghijklmnopqrstuvwxyz"
GREEK = "βγδεζηθλμξπρστφχψω"
CYRILLIC = "бвгджзийлмнптфцчшщъыьэюя"
CYRILLIC_FONTS = 9
"""The first fonts of the list, DejaVu, have Cyrillic letters; the others do not."""

BATCH, LEARNING_RATE, WARM_UP = 64, 1e-3, 100


def pretrain(
    name: str,
    path: Path,
    *,
    steps: int | None = None,
    image_size: int = IMAGE_SIZE,
    learning_rate: float = LEARNING_RATE,
) -> float:
    """Write a net's weights; return the accuracy on letters that were drawn after the training.

    Args:
        name: name of the net.
        path: file of the weights.
        steps: steps of the training; None for those of ``STEPS``.
        image_size: side of the images in pixels.
        learning_rate: highest learning rate.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    rng = random.Random("letters")
    letters = LATIN + GREEK + CYRILLIC
    sized = {"img_size": image_size} if "vit" in name else {}
    model = timm.create_model(name, num_classes=len(letters), **sized)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    mean, std = (torch.tensor(model.default_cfg[k])[:, None, None] for k in ("mean", "std"))

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = [rng.randrange(len(letters)) for _ in range(count)]
        pixels = torch.from_numpy(np.stack([_letter(letters[each], rng) for each in labels]))
        grey = pixels.float().div(255)[:, None]
        large = torch.nn.functional.interpolate(grey, size=image_size, mode="bilinear")
        return (large.expand(-1, 3, -1, -1) - mean) / std, torch.tensor(labels)

    steps = STEPS[name] if steps is None else steps
    for step in range(steps):
        warm = min(1.0, (step + 1) / WARM_UP)
        rate = learning_rate * warm * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, labels = batch(BATCH)
        loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        images, labels = batch(1000)
        right = float((model(images).argmax(1) == labels).float().mean())
    save_file({name: each.contiguous() for name, each in model.state_dict().items()}, path)
    return right


def _letter(letter: str, rng: random.Random) -> np.ndarray:
    fonts = FONTS[:CYRILLIC_FONTS] if letter in CYRILLIC + GREEK else FONTS
    image = draw_letter(letter, font_folder() / f"{rng.choice(fonts)}.ttf", rng)
    assert image.shape == (SIDE, SIDE)
    return image
