"""Capital letters rendered from the fonts that matplotlib installs: a third labelled set.

Each image is one letter of one font, shifted, turned and scaled a little. The parts are drawn at
random, as from a folder without parts.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from planner.training.images.image_set import DataSource, ImageData
from planner.training.images.named.load_request import LoadRequest
from planner.training.images.split import split_off_test

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral",
    "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
PER_FONT, SIDE = 4, 32


def load_glyphs(request: LoadRequest) -> ImageData:
    """Return 1,560 letters."""
    folder = font_folder()
    rng = random.Random(0)
    pixels, labels = [], []
    for name in FONTS:
        for label, letter in enumerate(LETTERS):
            for _ in range(PER_FONT):
                pixels.append(draw_letter(letter, folder / f"{name}.ttf", rng))
                labels.append(label)
    images = request.whole_images(np.stack(pixels), labels, mirror=False)
    train, test = split_off_test(labels, request.seed)
    digest = hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()
    return ImageData.take_selection(
        train=images.select(train),
        test=images.select(test),
        class_names=list(LETTERS),
        source=DataSource(
            name="glyphs", train_images=len(train), held_out_images=len(test), fingerprint=digest
        ),
        seed=request.seed,
    )


@cache
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)


def font_folder() -> Path:
    """Return the folder of the fonts that matplotlib installs."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def draw_letter(letter: str, font: Path, rng: random.Random) -> np.ndarray:
    """Return a letter as bytes [SIDE, SIDE], shifted, turned and scaled at random."""
    image = Image.new("L", (SIDE, SIDE))
    size = rng.randint(18, 26)
    centre = (SIDE / 2 + rng.uniform(-3, 3), SIDE / 2 + rng.uniform(-3, 3))
    ImageDraw.Draw(image).text(centre, letter, fill=255, font=_font(font, size), anchor="mm")
    return np.asarray(image.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR), dtype=np.uint8)
