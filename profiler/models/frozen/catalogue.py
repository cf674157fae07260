"""The known frozen models, read from ``catalogue.json``. No torch is imported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from profiler.errors import UnknownNameError

FrozenKind = Literal["features", "zero_shot", "prompted"]
"""``features``: a classifier is fitted on the features of a frozen backbone. ``zero_shot``: images
are compared with class names by an image and a text tower. ``prompted``: a language model that sees
the image is asked for the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAccuracy:
    """A published accuracy on a data set.

    Attributes:
        value: fraction of the test images classified correctly.
        protocol: how it was measured.
        source: publication or file.
    """

    value: float
    protocol: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenModel:
    """A checkpoint that is used as it is.

    Attributes:
        name: name on the command line.
        kind: how it classifies.
        package: package that has the model's code; ``own`` for ``mobilevlm``.
        model: name of the architecture in the library.
        checkpoint: name of the published weights.
        image_size: height and width of the images in pixels.
        parameters_millions: published number of parameters, in millions.
        parameters_source: publication or file of that number.
        image_tokens: tokens of an image in the language model; None for the other kinds.
        accuracies: published accuracies by data set.
        config: the architecture, where the library needs one; the checkpoint's own configuration.
    """

    name: str
    kind: FrozenKind
    package: Literal["timm", "open_clip", "transformers", "own"]
    model: str
    checkpoint: str
    image_size: int
    parameters_millions: float
    parameters_source: str
    image_tokens: int | None
    accuracies: dict[str, PublishedAccuracy]
    config: dict[str, Any] | None


@cache
def frozen_models() -> dict[str, FrozenModel]:
    """Return all known frozen models by name."""
    text = (resources.files("profiler.models.frozen") / "catalogue.json").read_text("utf-8")
    found = {}
    for entry in json.loads(text)["models"]:
        accuracies = {d: PublishedAccuracy(**a) for d, a in entry["accuracies"].items()}
        found[entry["name"]] = FrozenModel(**(entry | {"accuracies": accuracies}))
    return found


def frozen_model(name: str) -> FrozenModel:
    """Return a frozen model.

    Raises:
        UnknownNameError: there is no such name.
    """
    known = frozen_models()
    if name not in known:
        raise UnknownNameError(
            kind="frozen model", name=name, known=known, hint=f"use one of {', '.join(known)}"
        )
    return known[name]
