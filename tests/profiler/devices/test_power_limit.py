"""Power limits, with a GPU in NVML's place that remembers what was set."""

from __future__ import annotations

import types

import pytest

from profiler.devices import nvml
from profiler.devices.nvml import NvmlGpu
from profiler.devices.power_limit import PowerLimitWarning, limited_power


class NVMLError(Exception):
    pass


class Library(types.SimpleNamespace):
    """NVML with a single GPU; ``refuses`` is a user without permission."""

    def __init__(self, *, refuses: bool) -> None:
        self.milliwatts, self.history = 350_000, list[int]()

        def set_limit(handle: int, milliwatts: int) -> None:
            if refuses:
                raise NVMLError("Insufficient Permissions")
            self.milliwatts = milliwatts
            self.history.append(milliwatts)

        super().__init__(
            NVMLError=NVMLError,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetName=lambda handle: "NVIDIA GeForce RTX 3090",
            nvmlDeviceGetPowerManagementLimit=lambda handle: self.milliwatts,
            nvmlDeviceSetPowerManagementLimit=set_limit,
        )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Library:
    made = Library(refuses=request.param)
    monkeypatch.setattr(nvml, "_nvml", lambda: made)
    return made


@pytest.mark.parametrize("library", [False], indirect=True)
def test_a_limit_is_set_and_the_earlier_one_restored(library: Library) -> None:
    with pytest.raises(KeyError), limited_power(NvmlGpu(), 280.0):
        assert library.milliwatts == 280_000
        raise KeyError
    assert library.history == [280_000, 350_000]


@pytest.mark.parametrize("library", [True], indirect=True)
def test_without_permission_the_work_runs_and_a_warning_names_the_command(
    library: Library,
) -> None:
    done = False
    with pytest.warns(PowerLimitWarning, match="nvidia-smi -pl 280"), limited_power(NvmlGpu(), 280):
        done = True
    assert done
    assert library.history == []
