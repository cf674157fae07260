"""Kernel times against closed forms, counts by hand and physical limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from profiler.devices.table import DEVICES, TIMED, device_spec
from profiler.errors import UsageError
from profiler.records import Origin, Spread
from profiler.timing import predicted_cost as predicted_cost_module
from profiler.timing.kernel_rates import BOUND, KernelRates, kernel_file
from profiler.timing.kernel_terms import kernel_terms, slot_keys
from profiler.timing.power import PowerModel
from profiler.timing.predicted_cost import power_saving, predicted_cost
from profiler.timing.rates import check_power_limit, published_rates
from profiler.timing.rates import rates as rates_of
from profiler.workload import Workload

RATES = KernelRates(
    half_flops=1e14,
    single_flops=1e13,
    boost_flops=1e13,
    bytes_per_second=1e12,
    multiprocessors=80,
    coefficients={
        "matmul half": {"flops": 1.0, "tile": 0.5, "unaligned": 2.0, "bytes": 1.0, "launch": 1e-6},
        "convolution_dgrad dense": {"flops": 1.0},
        "convolution_wgrad dense": {"flops": 10.0},
        "batch_norm": {"waves": 1.0},
        "elementwise": {"bytes": 2.0},
    },
)


def seconds(name: str, *dims: float, moved: float = 0.0, rates: KernelRates = RATES) -> float:
    parts = replace(rates, weights={}).parts(
        [name],
        np.zeros(1, dtype=np.int64),
        dims=np.array([[*dims, *[0.0] * (6 - len(dims))]]),
        moved_bytes=np.array([moved]),
        launches=np.ones(1, dtype=np.int64),
    )
    return float(parts.sum())


def test_an_aligned_matrix_product():
    flops = 2.0 * 256 * 64 * 128
    expected = 1.5 * flops / 1e14 + 3e6 / 1e12 + 1e-6
    found = seconds("matmul half", 1, 256, 64, 128, 1, 256, moved=3e6)
    assert found == pytest.approx(expected, rel=1e-12)


def test_an_unaligned_product_pays_for_its_padding():
    # 100 x 10 x 30 in tiles of 128 x 32 x 32
    flops, padded = 2.0 * 100 * 10 * 30, 2.0 * 128 * 32 * 32
    expected = (flops + 0.5 * padded + 2.0 * flops) / 1e14 + 1e-6
    found = seconds("matmul half", 1, 100, 10, 30, 1, 100)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1.0), (0.25, 4.0)])
def test_the_power_decides_how_long_a_large_product_takes(share: float, expected: float):
    rates = replace(
        RATES,
        boost_flops=2e13,
        power_share=share,
        coefficients={"matmul": {"flops": 0.1, "bound": 1.0, "launch": 1e-6}},
    )
    found = seconds("matmul", 1, 4096, 4096, 4096, 1, 4096, rates=rates)
    assert found == pytest.approx(expected * 2.0 * 4096**3 / 2e13 + 1e-6, rel=1e-6)


def test_a_product_that_the_bandwidth_slows_is_below_the_power_bound():
    rates = replace(RATES, boost_flops=2e13, coefficients={"matmul": {"bytes": 1.0, "bound": 1.0}})
    assert seconds("matmul", 1, 8, 8, 8, moved=1e9, rates=rates) == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize(
    ("rows", "columns", "strips", "apart"),
    [
        (256, 80 * 512, 2, 1.0),  # two strips of 128 rows, and just as many columns as are held
        (257, 80 * 512, 5, 1.0),  # one row more: strips of 64
        (200, 80 * 512, 2, 1.0),  # 72 rows more: strips of 128
        (256, 80 * 128, 2, 0.5),  # the root of a quarter
        (256, 80 * 2048, 2, 1.0),
    ],
)
def test_strips_of_rows_read_the_second_matrix_again(
    rows: int, columns: int, strips: int, apart: float
):
    rates = replace(
        RATES,
        boost_flops=1e13,
        before_volta=True,
        coefficients={"matmul": {"reread": 2.0}, "add half": {"bytes": 3.0}},
    )
    inner = 1024
    shape = (1, rows, columns, inner, 1, rows)
    expected = 2.0 * strips * (4 * columns * inner - 80 * 1e5) * apart / 1e12
    assert seconds("matmul", *shape, rates=rates) == pytest.approx(expected, rel=1e-12)
    assert seconds("matmul", *shape, rates=replace(rates, before_volta=False)) == 0.0
    # without faster units, 16 bits take as long; other kernels have their own coefficients
    assert seconds("matmul half", *shape, rates=rates) == pytest.approx(expected, rel=1e-12)
    assert seconds("add half", 9, moved=1e9, rates=rates) == pytest.approx(3e-3, rel=1e-12)
    in_cache = (1, rows, 512, 512, 1, rows)
    assert seconds("matmul", *in_cache, rates=rates) == 0.0


def test_a_product_without_seconds_has_no_power_bound():
    rates = replace(RATES, boost_flops=2e13, coefficients={"matmul": {"bytes": 1.0, "bound": 1.0}})
    assert seconds("matmul", 1, 8, 8, 8, moved=0.0, rates=rates) == 0.0


@pytest.mark.parametrize(
    ("name", "rereads"),
    [("gtx-1080", True), ("jetson-nano", True), ("v100", False), ("rtx-2060-super", False)],
)
def test_only_boards_before_volta_read_again(name: str, rereads: bool):
    rates = kernel_file().rates(device_spec(name), "fp32")
    assert rates is not None
    assert rates.before_volta is rereads


@pytest.mark.parametrize(
    ("flags", "factor"), [("", 11.0), (" no_input", 10.0), (" no_weight", 1.0)]
)
def test_a_backward_convolution_is_two_products(flags: str, factor: float):
    # batch 4, 8 x 8 positions with stride 2 from 16 x 16, 32 to 64 channels, kernel 3 x 3: both
    # gradients have the FLOPs of the forward only if positions of input and output agree
    forward = 2.0 * 4 * 64 * 64 * 32 * 9
    name = f"convolution_backward dense k3x3 s1{flags}"
    found = seconds(name, 1, 4 * 64, 64, 32, 9, 4 * 64)
    assert found == pytest.approx(factor * forward / 1e13, rel=1e-12)


@pytest.mark.parametrize(("channels", "waves"), [(80, 1), (81, 2), (8, 1), (400, 5)])
def test_batch_normalisation_runs_a_block_for_each_channel(channels: int, waves: int):
    per_channel = 1e6
    found = seconds("batch_norm", 16, channels, 49, moved=per_channel * channels)
    assert found == pytest.approx(waves * 80 * per_channel / 1e12, rel=1e-12)


def test_a_class_without_coefficients_is_elementwise():
    assert seconds("never heard of", 7, moved=5e6) == pytest.approx(1e-5, rel=1e-12)


@pytest.mark.parametrize("name", sorted(kernel_file().coefficients))
def test_each_coefficient_is_a_term_of_its_class(name: str):
    values = kernel_file().coefficients[name]
    assert values
    assert all(0 < value < 100 for value in values.values())
    if not name.startswith(("bias", "convolution_dgrad", "convolution_wgrad", "convolution")):
        assert set(values) - {BOUND} <= {slot.term for slot in slot_keys(name)}


def test_memory_bound_kernels_do_not_exceed_the_bandwidth():
    for name in ("add", "mul half", "copy", "layer_norm", "softmax half", "activation half"):
        assert kernel_file().coefficients[name]["bytes"] >= 1.0


def test_every_gpu_has_an_origin_and_an_interval():
    for name, device in DEVICES.items():
        rates = published_rates(device, precision="fp16") if device.is_cuda else None
        if rates is None:
            continue
        assert rates.spread is not None
        assert rates.spread.low < 1 < rates.spread.high, name
    fitted = published_rates(device_spec("rtx-3090"), precision="fp16")
    other = published_rates(device_spec("rtx-3090"), precision="fp32")
    assert fitted is not None
    assert other is not None
    assert (fitted.origin, other.origin) == (Origin.FITTED, Origin.TRANSFERRED)
    assert fitted.spread is not None
    assert fitted.spread.coverage is not None


def test_a_board_of_little_power_does_not_hold_its_clock():
    file = kernel_file()
    assert file.sustained_clock(device_spec("t4")) < 0.7
    assert file.sustained_clock(device_spec("rtx-2060-super")) == 1.0


def test_error_correction_on_the_bus_takes_bandwidth():
    file = kernel_file()
    # 1/8 of the bits are the correction's, on top of what any memory loses
    assert file.sustained_bandwidth(device_spec("t4")) == pytest.approx(7 / 8, rel=0.03)
    assert file.sustained_bandwidth(device_spec("l4")) == pytest.approx(7 / 8, rel=0.03)
    assert file.sustained_bandwidth(device_spec("rtx-2060-super")) == 1.0
    assert file.sustained_bandwidth(device_spec("rtx-3090")) == 1.0


@pytest.mark.parametrize("capability", [(6, 1), (8, 6)])
@pytest.mark.parametrize(("precision", "flag"), [("fp32", ""), ("fp16", " half")])
def test_a_timed_gpu_repeats_what_was_timed_on_it(
    precision: str, flag: str, capability: tuple[int, int]
):
    flops, moved = 20e12, 800e9
    spec = replace(
        device_spec("rtx-3090"), name="timed here", source=TIMED, tdp_watts=None,
        compute_capability=capability,
        fp32_flops=flops, fp16_tensor_flops=flops, memory_bandwidth_bytes_per_second=moved,
    )  # fmt: skip
    rates = kernel_file().rates(spec, precision)
    assert rates is not None
    side = 4096
    found = rates.parts(
        [f"matmul{flag}", "add"],
        np.arange(2),
        dims=np.array([[1.0, side, side, side, 1, side], [side * side, 0, 0, 0, 0, 0]]),
        moved_bytes=np.array([0.0, 3 * 4 * side**2]),
        launches=np.ones(2, dtype=np.int64),
    ).sum(axis=1)
    assert found[0] == pytest.approx(2 * side**3 / flops, rel=0.01)
    assert found[1] == pytest.approx(3 * 4 * side**2 / moved, rel=0.06)


LOAD = np.array([10e-3, 6e-3, 1e-3, 1e3])
"""Load of a step: 10 ms of kernels, 6 ms of them products and 1 ms launches; 1,000 launches."""

POWER = PowerModel(
    idle_watts=10.0, product_watts=100.0, memory_watts=20.0, floor=0.5,
    limit_watts=1e6, reached=1.0, sharpness=8.0, fixed_memory=1.0, slowdown_exponent=0.2,
)  # fmt: skip


def test_power_far_below_the_limit_is_the_sum_of_its_parts():
    assert POWER.watts(product_share=1.0) == pytest.approx(130.0, rel=1e-9)
    assert POWER.watts(product_share=0.0) == pytest.approx(80.0, rel=1e-9)
    assert POWER.watts(product_share=1.0, busy=0.0) == pytest.approx(10.0, rel=1e-9)


@pytest.mark.parametrize("name", ["rtx-3090", "t4", "h200", "jetson-orin-nano"])
def test_power_stays_below_the_board_limit(name: str):
    device = device_spec(name)
    model = kernel_file().power(device)
    assert model is not None
    assert device.tdp_watts is not None
    watts = [model.watts(product_share=share) for share in (0.0, 0.5, 1.0)]
    assert watts == sorted(watts)
    assert 0.2 * device.tdp_watts < watts[0] <= watts[2] < device.tdp_watts


def test_energy_has_the_interval_of_both_factors():
    rates = published_rates(device_spec("rtx-3090"), precision="fp16")
    cost = predicted_cost(LOAD, rates)
    time, energy = cost["step_seconds_interval"], cost["energy_joules_interval"]
    seconds, joules = cost["step_seconds"], cost["energy_joules"]
    assert time is not None
    assert energy is not None
    assert seconds is not None
    assert joules is not None
    assert energy.low / joules < time.low / seconds
    assert time.high / seconds < energy.high / joules
    assert predicted_cost(None, rates)["step_seconds_interval"] is None


def test_a_time_that_the_host_decides_has_no_measured_coverage():
    rates = published_rates(device_spec("rtx-3090"), precision="fp16")
    assert rates is not None
    gpu, host = (predicted_cost(np.array([10e-3, 6e-3, 1e-3, n]), rates) for n in (1e3, 1e4))
    assert gpu["step_seconds_origin"] is Origin.FITTED
    assert host["step_seconds_origin"] is Origin.DATA_SHEET
    assert host["step_seconds_interval"] is not None
    assert host["step_seconds_interval"].coverage is None


def test_a_gpu_that_waits_for_its_host_takes_less_power():
    rates = published_rates(device_spec("rtx-3090"), precision="fp16")
    assert rates is not None
    assert rates.power is not None
    busy, waiting = (rates.step_cost(np.array([10e-3, 6e-3, 1e-3, n])) for n in (1e3, 1e4))
    assert busy.seconds == 10e-3
    assert busy.watts == pytest.approx(rates.power.watts(product_share=0.6, busy=0.9))
    host = 1e4 * rates.launch_seconds
    assert waiting.seconds == waiting.host_seconds == pytest.approx(host)
    assert waiting.watts == pytest.approx(rates.power.watts(product_share=0.6, busy=9e-3 / host))


SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Power limits over the board's own."""


def limited(name: str, share: float, load: np.ndarray = LOAD) -> tuple[float, float]:
    """Return time and energy at a share of the board's power limit, relative to the whole limit."""
    device = device_spec(name)
    rates = published_rates(device, precision="fp32")
    assert rates is not None
    assert device.tdp_watts is not None
    free = rates.step_cost(load)
    low = replace(rates, power_limit_watts=share * device.tdp_watts).step_cost(load)
    assert free.joules is not None
    assert low.joules is not None
    return low.seconds / free.seconds, low.joules / free.joules


@pytest.mark.parametrize("name", ["v100", "rtx-2060-super", "p100", "rtx-5090", "gtx-1080"])
def test_a_power_limit_trades_time_for_energy(name: str):
    times, energies = zip(*(limited(name, share) for share in SHARES), strict=True)
    assert times[0] == pytest.approx(1.0)
    assert list(times) == sorted(times)
    assert list(energies) == sorted(energies, reverse=True)
    assert 1.0 < times[2] < 1.15
    assert 0.75 < energies[2] < 1.0


def test_a_power_limit_costs_no_time_if_the_host_decides():
    waiting = np.array([10e-3, 6e-3, 1e-3, 2e4])
    assert limited("rtx-3090", 0.7, waiting)[0] == 1.0


def test_the_offered_limit_is_the_best_of_those_that_cost_little_time():
    rates = published_rates(device_spec("v100"), precision="fp32")
    assert rates is not None
    saving, free = power_saving(LOAD, rates), rates.step_cost(LOAD)
    assert saving is not None
    assert free.joules is not None
    assert saving.step_seconds <= 1.05 * free.seconds
    assert saving.energy_joules <= 0.95 * free.joules
    for watts in range(180, 300, 10):
        other = replace(rates, power_limit_watts=float(watts)).step_cost(LOAD)
        assert other.joules is not None
        # limits between those that are tried may be a little better
        fast = other.seconds <= 1.05 * free.seconds
        assert not fast or other.joules >= 0.97 * saving.energy_joules
    assert power_saving(LOAD, replace(rates, power_limit_watts=200.0)) is None


@pytest.mark.parametrize("name", ["l4", "v100", "t4"])
def test_every_offered_limit_may_be_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = device_spec(name)
    rates = published_rates(device, precision="fp32")
    assert rates is not None
    for most in (1.0, 1.05, 2.0):
        monkeypatch.setattr(predicted_cost_module, "MOST_SLOWDOWN", most)
        saving = power_saving(LOAD, rates)
        if saving is not None:
            check_power_limit(device, saving.watts)


def test_a_limit_outside_of_the_measured_range_is_refused():
    workload = Workload(model="resnet18")
    for name, watts in (("v100", 100.0), ("v100", 301.0), ("cpu", 50.0)):
        with pytest.raises(UsageError, match="power"):
            rates_of(device_spec(name), workload, power_limit_watts=watts)


def test_every_gpu_with_a_data_sheet_has_a_power_model():
    for device in DEVICES.values():
        if device.is_cuda and device.tdp_watts and device.fp32_flops:
            model = kernel_file().power(device)
            assert model is not None
            watts = model.watts(product_share=0.7)
            assert 0.3 * device.tdp_watts < watts < device.tdp_watts, device.name


def test_an_interval_scales_with_its_prediction():
    around = Spread(low=0.5, high=2.0, coverage=0.9).around(4.0)
    assert (around.low, around.high, around.coverage) == (2.0, 8.0, 0.9)


def test_terms_do_not_depend_on_the_order_of_operations():
    rng = np.random.default_rng(0)
    names = ["matmul half", "convolution_backward dense k3x3 s1", "batch_norm", "copy"]
    index = rng.integers(0, 4, 50)
    dims = rng.integers(1, 300, (50, 6)).astype(float)
    moved, launches = rng.random(50), np.ones(50, dtype=np.int64)

    def terms(order: np.ndarray) -> np.ndarray:
        return kernel_terms(
            names, index[order], dims=dims[order], moved_bytes=moved[order],
            launches=launches[order], multiprocessors=20,
        )  # fmt: skip

    order = rng.permutation(50)
    np.testing.assert_array_equal(terms(order), terms(np.arange(50))[order])
