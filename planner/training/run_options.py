"""Options of a real run, shared by training, validation, recommendation and reloading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profiler.errors import check_whole_number

LEAST_STEPS = 2
"""Steps of a validation or a rehearsal: the first one also allocates the optimizer's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Data, length, seed and weights of a real run.

    Attributes:
        data: name of a data set, or a folder of class folders.
        steps: number of optimizer steps; None for the length that the run has by default.
        seed: seed of new weights, dropout and the order of images.
        weights: file with the backbone's weights.
        pretrained: whether timm's pretrained weights are loaded when no file is given.

    Raises:
        UsageError: ``steps`` is no whole number, or is below 1.
    """

    data: str
    steps: int | None = None
    seed: int = 0
    weights: Path | None = None
    pretrained: bool = True

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_whole_number("steps", self.steps, least=1)
