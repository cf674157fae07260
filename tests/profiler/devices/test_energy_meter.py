"""Energy of windows, on recorded GPUs whose energy is known in closed form."""

from __future__ import annotations

import threading

import pytest
from made_up_gpus import MADE_UP, made_up_gpu

from profiler.devices.energy_meter import EnergyMeter, trapezoid_joules
from profiler.devices.recorded_gpu import RecordedGpu, Sample
from profiler.errors import DeviceError


def test_energy_is_the_difference_of_the_counter() -> None:
    gpu = made_up_gpu()
    gpu.sleep(3.0)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(2.0)
    energy = meter.energy
    assert energy.method == "counter"
    assert energy.joules == pytest.approx(300.0)
    assert energy.watts == pytest.approx(150.0)
    assert energy.seconds == pytest.approx(2.0)
    assert energy.resolution == pytest.approx(0.05)
    assert energy.reason is None


def test_the_counter_stands_still_between_its_updates() -> None:
    gpu = made_up_gpu()
    gpu.sleep(0.05)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(0.99)  # 0.05 to 1.04: the counter has moved ten times, at 0.1, ..., 1.0
    energy = meter.energy
    assert energy.joules == pytest.approx(150.0)
    true_joules = 0.99 * 150
    assert energy.resolution is not None
    assert abs(energy.joules / true_joules - 1) <= energy.resolution


def test_windows_below_the_period_are_refused() -> None:
    gpu = made_up_gpu()
    with EnergyMeter(gpu) as meter:
        gpu.sleep(0.099)
    assert meter.energy.joules is None
    assert meter.energy.watts is None
    assert "99 ms is shorter than the sensor's period of about 100 ms" in str(meter.energy.reason)


def test_a_counter_that_stands_still_is_no_zero() -> None:
    gpu = made_up_gpu(seconds=0.0)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(5.0)
    assert meter.energy.joules is None
    assert "did not move" in str(meter.energy.reason)


def test_a_reset_counter_is_no_negative_energy() -> None:
    samples = [
        Sample(seconds=0.0, used_bytes=0, power_watts=None, counter_joules=500.0),
        Sample(seconds=1.0, used_bytes=0, power_watts=None, counter_joules=3.0),
    ]
    gpu = RecordedGpu(
        nvml_name="x", memory_bytes=1, compute_capability=(7, 5), samples=samples, origin=MADE_UP
    )
    with EnergyMeter(gpu) as meter:
        gpu.sleep(1.5)
    assert meter.energy.joules is None
    assert "reset" in str(meter.energy.reason)


def test_without_a_counter_power_is_integrated() -> None:
    gpu = made_up_gpu(counts=False)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(4.0)
    energy = meter.energy
    assert energy.method == "power"
    assert energy.joules == pytest.approx(600.0)


def test_power_readings_are_refused_below_the_period_too() -> None:
    gpu = made_up_gpu(counts=False)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(0.01)
    assert meter.energy.joules is None
    assert meter.energy.method == "power"


def test_a_gpu_without_sensors_says_so() -> None:
    gpu = made_up_gpu(counts=False, watts=None)
    with EnergyMeter(gpu) as meter:
        gpu.sleep(4.0)
    assert (meter.energy.joules, meter.energy.method) == (None, "none")
    assert meter.energy.reason == "this GPU reports neither energy nor power"


def test_power_that_fails_inside_the_window_gives_no_number() -> None:
    samples = [
        Sample(seconds=0.0, used_bytes=0, power_watts=50.0, counter_joules=None),
        Sample(seconds=1.0, used_bytes=0, power_watts=None, counter_joules=None),
    ]
    gpu = RecordedGpu(
        nvml_name="x", memory_bytes=1, compute_capability=(7, 5), samples=samples, origin=MADE_UP
    )
    meter = EnergyMeter(gpu)
    with meter:
        gpu.sleep(2.0)
    assert meter.energy.joules is None
    assert meter.energy.reason == "the power reading failed in the window"


def test_a_meter_can_be_used_again_and_synchronises_at_both_ends() -> None:
    gpu = made_up_gpu()
    calls: list[float] = []
    meter = EnergyMeter(gpu, synchronize=lambda: calls.append(gpu.now_seconds()))
    with pytest.raises(DeviceError, match="no window"):
        _ = meter.energy
    for seconds in (1.0, 3.0):
        with meter:
            gpu.sleep(seconds)
        assert meter.energy.joules == pytest.approx(150 * seconds)
    assert calls == [0.0, 1.0, 1.0, 4.0]


def test_an_error_inside_the_window_is_not_swallowed() -> None:
    gpu = made_up_gpu(counts=False)
    with pytest.raises(ZeroDivisionError), EnergyMeter(gpu):
        _ = 1 / 0


def test_trapezoid_is_exact_for_a_ramp() -> None:
    # power 2t from 0 to 10 s, at uneven times: the integral is 100 J
    times = [0.0, 0.3, 1.0, 4.5, 4.6, 10.0]
    assert trapezoid_joules([(t, 2 * t) for t in times]) == pytest.approx(100.0)
    assert trapezoid_joules([(0.0, 5.0)]) == 0


def test_no_thread_reads_on_after_an_error_of_the_kernels() -> None:
    """An error of a kernel reaches the host at the next synchronization."""
    calls = iter([None, RuntimeError("CUDA error: an illegal memory access")])

    def synchronize() -> None:
        if (error := next(calls)) is not None:
            raise error

    gpu = made_up_gpu(counts=False)
    before = threading.active_count()
    with (
        pytest.raises(RuntimeError, match="illegal memory"),
        EnergyMeter(gpu, synchronize=synchronize) as meter,
    ):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(DeviceError, match="no window"):
        _ = meter.energy
