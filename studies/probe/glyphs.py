"""Capital letters rendered from the fonts that matplotlib installs: a third labelled set.

Each image is one letter of one font, shifted, turned and scaled a little. Fonts are divided between
the parts, so no part has a font of another.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from planner.training.images.image_set import DataSource, ImageData
from planner.training.images.named.load_request import LoadRequest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral",
    "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
PER_FONT, SIDE = 4, 32


def load_glyphs(request: LoadRequest) -> ImageData:
    """Return 1,560 letters; 3 of the 15 fonts are the test part."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = random.Random(0)
    pixels, labels, fonts = [], [], []
    for number, name in enumerate(FONTS):
        for label, letter in enumerate(LETTERS):
            for _ in range(PER_FONT):
                pixels.append(_draw(letter, folder / f"{name}.ttf", rng))
                labels.append(label)
                fonts.append(number)
    images = request.whole_images(np.stack(pixels), labels, mirror=False)
    train = [i for i, font in enumerate(fonts) if font % 5 != 4]
    test = [i for i, font in enumerate(fonts) if font % 5 == 4]
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


def _draw(letter: str, font: Path, rng: random.Random) -> np.ndarray:
    image = Image.new("L", (SIDE, SIDE))
    size = rng.randint(18, 26)
    centre = (SIDE / 2 + rng.uniform(-3, 3), SIDE / 2 + rng.uniform(-3, 3))
    ImageDraw.Draw(image).text(
        centre, letter, fill=255, font=ImageFont.truetype(str(font), size), anchor="mm"
    )
    return np.asarray(image.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR), dtype=np.uint8)
