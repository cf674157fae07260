"""A small Vision Transformer pretrained on rendered letters, since no package holds such weights.

The net is timm's ``test_vit`` (patches of 16, width 64, 6 blocks, 0.4 M parameters) at 64 px. It is
trained on lower-case Latin, Greek and Cyrillic letters of 15 fonts, drawn anew for every batch. The
sets that it is carried over to have none of these classes: digits, silhouettes and capital letters.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
from glyphs import FONTS, SIDE, draw_letter, font_folder

MODEL, IMAGE_SIZE = "test_vit", 64
LATIN = "abcdefghijklmnopqrstuvwxyz"
GREEK = "βγδεζηθλμξπρστφχψω"
CYRILLIC = "бвгджзийлмнптфцчшщъыьэюя"
CYRILLIC_FONTS = 9
"""The first fonts of the list, DejaVu, have Cyrillic letters; the others do not."""

STEPS, BATCH, LEARNING_RATE, WARM_UP = 1500, 64, 1e-3, 100


def pretrain(path: Path) -> float:
    """Write the weights; return the accuracy on letters that were drawn after the training."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    rng = random.Random("letters")
    letters = LATIN + GREEK + CYRILLIC
    model = timm.create_model(MODEL, num_classes=len(letters), img_size=IMAGE_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    mean, std = (torch.tensor(model.default_cfg[k])[:, None, None] for k in ("mean", "std"))

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = [rng.randrange(len(letters)) for _ in range(count)]
        pixels = torch.from_numpy(np.stack([_letter(letters[each], rng) for each in labels]))
        grey = pixels.float().div(255)[:, None]
        large = torch.nn.functional.interpolate(grey, size=IMAGE_SIZE, mode="bilinear")
        return (large.expand(-1, 3, -1, -1) - mean) / std, torch.tensor(labels)

    for step in range(STEPS):
        warm = min(1.0, (step + 1) / WARM_UP)
        rate = LEARNING_RATE * warm * (1 + math.cos(math.pi * step / STEPS)) / 2
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
