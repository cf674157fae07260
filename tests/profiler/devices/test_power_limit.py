"""Power limits, with a GPU in NVML's place that remembers what was set."""

from __future__ import annotations

import contextlib
import types

import pytest

from profiler.devices import nvml
from profiler.devices.nvml import NvmlGpu
from profiler.devices.power_limit import PowerLimitWarning, limited_power
from profiler.errors import DeviceError


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


class UnreadableGpu:
    """A GPU whose limit cannot be read."""

    def __init__(self) -> None:
        self.history = list[float]()

    def power_limit_watts(self) -> float | None:
        return None

    def set_power_limit(self, watts: float) -> None:
        self.history.append(watts)


def test_a_limit_that_could_not_be_restored_is_not_set() -> None:
    gpu = UnreadableGpu()
    with pytest.warns(PowerLimitWarning, match="cannot be read"), limited_power(gpu, 280.0):
        pass
    assert gpu.history == []


class LostGpu(UnreadableGpu):
    """A GPU whose driver takes a limit once."""

    def power_limit_watts(self) -> float | None:
        return 350.0

    def set_power_limit(self, watts: float) -> None:
        if self.history:
            raise DeviceError("GPU is lost")
        super().set_power_limit(watts)


@pytest.mark.parametrize("error", [None, KeyError])
def test_a_limit_that_cannot_be_restored_does_not_replace_the_result(
    error: type[Exception] | None,
) -> None:
    raised = pytest.raises(error) if error else contextlib.nullcontext()
    with (
        pytest.warns(PowerLimitWarning, match=r"GPU is lost.*nvidia-smi -pl 350"),
        raised,
        limited_power(LostGpu(), 280.0),
    ):
        if error:
            raise error
