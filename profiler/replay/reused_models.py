"""Models of profile replays, built once for several placements.

A profile replays a workload under each option of its units, and its update by each optimizer. Only
three units of a row run, so building the model takes as long as the step itself. A replay leaves a
model as it found it, apart from gradients (``replay_built_model``); the next replay of an equal
model therefore takes it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property

from torch._subclasses.fake_tensor import FakeTensorMode

from profiler.models import backbones
from profiler.models.build import BuiltModel, build_model
from profiler.models.methods import get_method
from profiler.replay.repeated_units import unit_signatures
from profiler.workload import Workload

MOST_MODELS = 2
"""Models that are kept: a profile alternates between two ranks."""


def new_mode() -> FakeTensorMode:
    """Return the mode of a replay's fake tensors."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True, kw_only=True)
class ReplayModel:
    """A model for replays.

    Attributes:
        built: the model; its tensors become fake in the first replay.
        mode: mode of its fake tensors.
    """

    built: BuiltModel
    mode: FakeTensorMode = field(default_factory=new_mode)

    @classmethod
    def of(cls, workload: Workload) -> ReplayModel:
        """Build the model of a workload on ``meta``."""
        return cls(built=build_model(workload, device="meta"))

    @cached_property
    def signatures(self) -> list[object]:
        """Signatures of the units (``unit_signatures``)."""
        return unit_signatures(self.built.backbone, self.built.units)


_models: dict[tuple[Workload, int], ReplayModel] = {}
"""Models by their workload (``_model_of``) and level of attention, the one used last at the end."""


@cache
def _model_of(workload: Workload) -> Workload:
    """Return the workload without what does not change its model.

    An optimizer does not, but a method may refuse it (GaLore); building the model then says so.
    """
    common = workload.replace(micro_batch=1, accumulation=1)
    shapes = backbones.shared_shapes(
        common.model, num_classes=common.num_classes, image_size=common.image_size
    )
    if get_method(common.method).refusal(shapes, common) is None:
        common = common.replace(optimizer="adamw")
    return common


@contextmanager
def reused_model(workload: Workload) -> Iterator[ReplayModel]:
    """Yield the model of a workload, and keep it for the next replay.

    It is not kept after an error, or if its method has state between steps: AdaLoRA's importances,
    from which the next replay would go on.
    """
    key = _model_of(workload), backbones.attention_level()
    model = _models.pop(key, None) or ReplayModel.of(workload)
    yield model
    if any(model.built.method.training_state(model.built.model).values()):
        return
    model.built.model.zero_grad(set_to_none=True)
    while len(_models) >= MOST_MODELS:
        del _models[next(iter(_models))]
    _models[key] = model
