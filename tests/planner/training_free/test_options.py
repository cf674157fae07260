from __future__ import annotations

from planner.training_free.options import BATCHES, _option
from profiler.models.frozen.catalogue import FrozenModel, frozen_models


class _GivenMemory:
    """1 GB of weights and 100 MB for each image."""

    dtype = "float16"

    def of(self, model: FrozenModel, batch: int) -> tuple[int, int]:
        peak = 10**9 + batch * 10**8
        return peak, peak + 2 * 10**8


def test_the_largest_batch_that_fits_is_taken() -> None:
    memory = _GivenMemory()
    for model in frozen_models().values():
        sizes = {
            budget: _option(model, memory, int(budget * 1e9), "dtd") for budget in (5, 2.2, 1.3, 1)
        }
        largest = BATCHES[model.kind][0]
        assert (sizes[5].batch, sizes[5].fits) == (largest, True)
        assert (sizes[1.3].batch, sizes[1.3].fits) == (1, True)
        assert (sizes[1].batch, sizes[1].fits) == (1, False)
        assert sizes[2.2].batch == (8 if largest > 8 else 1)


def test_an_option_shows_what_is_published_of_it() -> None:
    known = _option(frozen_models()["dinov2_l"], _GivenMemory(), 10**10, "cifar100").to_json()
    assert known["accuracy"]["value"] == 0.9171
    assert known["accuracy"]["kind"] == "published"
    assert known["rung"] == "replayed"
    unknown = _option(frozen_models()["dinov2_s"], _GivenMemory(), 10**10, "cifar100").to_json()
    assert unknown["accuracy"] is None
