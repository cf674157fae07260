"""Messages between a probe and its child process."""

from __future__ import annotations

from msgspec import field

from planner.training.probe_records import Learner, ProbeRun
from profiler.json_records import NonNegativeFloat, PositiveFloat
from profiler.records import DeviceKind
from profiler.running.messages import Message


class ProbeRequest(Message, frozen=True, kw_only=True):
    """Request of a probe.

    Attributes:
        learners: learners at the image size of their plans.
        data: name of a data set, or a folder.
        device: type of device to run on.
        seed: seed of the choice of images.
        weights: paths of weights files, by the backbone; one without a file is left out.
        pretrained: whether timm's pretrained weights are loaded when no file is given.
        seconds: time of the runs; loading and timing come on top.
        storage: SQLAlchemy URL of the study.
        study: name of the study.
    """

    learners: tuple[Learner, ...]
    data: str
    device: DeviceKind
    seed: int
    weights: dict[str, str]
    pretrained: bool
    seconds: PositiveFloat
    storage: str
    study: str

    @property
    def models(self) -> list[str]:
        """Backbones of the learners, in alphabetical order."""
        return sorted({learner.candidate.workload.model for learner in self.learners})


class ProbeResult(Message, frozen=True, kw_only=True):
    """Result of a probe.

    Attributes:
        runs: all runs of the setting, those of earlier probes included.
        earlier_runs: number of these.
        seconds: duration of this probe.
        reason: why it ended, one clause.
        failures: why a learner could not be trained, by its name.
        test_images: images of the test part, which are not read; None if it is not known.
    """

    runs: tuple[ProbeRun, ...]
    earlier_runs: int
    seconds: NonNegativeFloat
    reason: str
    failures: dict[str, str] = field(default_factory=dict)
    test_images: int | None = None
