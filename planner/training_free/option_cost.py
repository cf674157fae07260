"""Cost of a training-free option as plain data, and the cost of a linear probe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from profiler.prediction.inference import DataSetCost
from profiler.records import Origin, ValueInterval

INVERSE_REGULARISATIONS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Values of C that a linear probe is fitted with."""

MOST_ITERATIONS = 300
"""Most iterations of a fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCost:
    """Cost of a linear probe on cached features.

    Attributes:
        train_images: number of training images.
        extraction_seconds: seconds of the features of all training images, without decoding.
        extraction_seconds_interval: its interval.
        extraction_joules: energy of the same.
        extraction_joules_interval: its interval.
        fit_flops_at_most: FLOPs of the fits on the host: 4 for each feature, class and image in
            each iteration, as many iterations as are allowed.
    """

    train_images: int
    extraction_seconds: float | None
    extraction_seconds_interval: ValueInterval | None
    extraction_joules: float | None
    extraction_joules_interval: ValueInterval | None
    fit_flops_at_most: int


def probe_cost(
    cost: DataSetCost | None, features: int, num_classes: int, train_images: int
) -> ProbeCost:
    """Return the cost of the features of all training images and of the fits.

    Args:
        cost: cost of an image; None if it is not known.
        features: features of an image.
        num_classes: number of classes.
        train_images: number of training images.
    """
    image = None if cost is None else cost.image
    iterations = MOST_ITERATIONS * len(INVERSE_REGULARISATIONS)
    return ProbeCost(
        train_images=train_images,
        extraction_seconds=_scaled(None if image is None else image["step_seconds"], train_images),
        extraction_seconds_interval=_scaled_interval(
            None if image is None else image["step_seconds_interval"], train_images
        ),
        extraction_joules=_scaled(None if image is None else image["energy_joules"], train_images),
        extraction_joules_interval=_scaled_interval(
            None if image is None else image["energy_joules_interval"], train_images
        ),
        fit_flops_at_most=4 * features * num_classes * train_images * iterations,
    )


def _scaled(value: float | None, factor: int) -> float | None:
    return None if value is None else value * factor


def _scaled_interval(interval: ValueInterval | None, factor: int) -> ValueInterval | None:
    return None if interval is None else interval.times(factor)


def cost_to_json(cost: DataSetCost) -> dict[str, Any]:
    """Return the cost of an image and of the prompts, with origins and intervals."""
    image, setup = cost.image, cost.setup
    return {
        "image_seconds": image["step_seconds"],
        "image_seconds_origin": _origin(image["step_seconds_origin"]),
        "image_seconds_interval": _interval_object(image["step_seconds_interval"]),
        "image_joules": image["energy_joules"],
        "image_joules_origin": _origin(image["energy_joules_origin"]),
        "image_joules_interval": _interval_object(image["energy_joules_interval"]),
        "prompt_seconds": setup["step_seconds"],
        "prompt_joules": setup["energy_joules"],
    }


def _origin(origin: Origin | None) -> str | None:
    return None if origin is None else origin.value


def _interval_object(interval: ValueInterval | None) -> dict[str, Any] | None:
    return None if interval is None else asdict(interval)
