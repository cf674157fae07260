"""scikit-learn's handwritten digits."""

from __future__ import annotations

from planner.training.images.image_set import DataSource, ImageData
from planner.training.images.named.load_request import LoadRequest, hash_pixels
from planner.training.images.split import split_off_test


def load_digits(request: LoadRequest) -> ImageData:
    """Load 1,797 digits of 8x8 pixels with 17 levels of ink."""
    import numpy as np
    from sklearn import datasets

    bunch = datasets.load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = [int(label) for label in bunch.target]
    train, test = split_off_test(labels, request.seed)
    images = request.whole_images(pixels, labels, mirror=False)
    return ImageData.take_selection(
        train=images.select(train),
        test=images.select(test),
        class_names=[str(name) for name in bunch.target_names],
        source=DataSource(
            name="digits",
            train_images=len(train),
            held_out_images=len(test),
            fingerprint=hash_pixels((pixels, labels)),
        ),
        seed=request.seed,
    )
