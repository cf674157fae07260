"""Size curves against closed forms, and their place in a kernel's seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from profiler.devices.table import device_spec
from profiler.timing.kernel_rates import KernelRates, kernel_file
from profiler.timing.kernel_terms import BYTES, FIRST_PRODUCT, SECOND_PRODUCT, slot_keys
from profiler.timing.size_curves import PRODUCT_SIZES, SizeCurves, product_sizes

FLAT = {name: {"sizes": [1.0, 10.0], "factors": [1.0, 1.0]} for name in PRODUCT_SIZES}


def curves(**changed: dict[str, list[float]]) -> SizeCurves:
    return SizeCurves(FLAT | changed)


def test_a_curve_is_linear_in_logarithms_and_constant_outside():
    found = curves(rows={"sizes": [10.0, 1000.0], "factors": [4.0, 1.0]})
    sizes = np.ones((5, len(PRODUCT_SIZES)))
    sizes[:, PRODUCT_SIZES.index("rows")] = [1.0, 10.0, 100.0, 1000.0, 1e6]
    np.testing.assert_allclose(found.factors(sizes), [4.0, 4.0, 2.0, 1.0, 1.0], rtol=1e-12)


def test_curves_are_multiplied():
    found = curves(
        rows={"sizes": [1.0, 2.0], "factors": [3.0, 3.0]},
        inner={"sizes": [1.0, 2.0], "factors": [0.5, 0.5]},
    )
    np.testing.assert_allclose(found.factors(np.ones((1, len(PRODUCT_SIZES)))), [1.5], rtol=1e-12)


def test_the_tiles_of_a_product_by_hand():
    # 129 x 65 needs 2 x 2 tiles of 128 x 64 for each of 3 products
    one = np.ones(1)
    found = product_sizes(3 * one, 129 * one, 65 * one, 7 * one, multiprocessors=24)
    assert found.tolist() == [[3.0, 129.0, 65.0, 7.0, 0.5]]


RATES = KernelRates(
    half_flops=1e14, single_flops=1e13, boost_flops=1e13, bytes_per_second=1e12, multiprocessors=1,
    coefficients={
        name: {"flops": 1.0, "bytes": 1.0}
        for name in (
            "convolution dense", "convolution_dgrad dense", "convolution_wgrad dense",
            "convolution dense half", "elementwise",
        )
    },
)  # fmt: skip

# 5 output pixels, 7 output channels, 11 input channels, a 3 x 3 kernel and 13 input pixels
DIMS = np.array([[1.0, 5.0, 7.0, 11.0, 9.0, 13.0]])


def parts(rates: KernelRates, name: str) -> np.ndarray:
    return rates.parts(
        [name], np.zeros(1, dtype=np.int64), dims=DIMS, moved_bytes=np.array([1e6]),
        launches=np.ones(1, dtype=np.int64),
    )[0]  # fmt: skip


@pytest.mark.parametrize(("flags", "rows"), [("convolution", 5.0), ("convolution_backward", 13.0)])
def test_the_rows_of_a_forward_are_outputs_and_of_its_inputs_gradient_inputs(flags, rows):
    name = f"{flags} dense k3x3 s1"
    doubled = curves(rows={"sizes": [rows, rows + 0.1], "factors": [2.0, 1.0]})
    kernel_class = slot_keys(name)[0].kernel_class
    curved = replace(RATES, curves={kernel_class: doubled}, weights={})
    plain, found = parts(RATES, name), parts(curved, name)
    np.testing.assert_allclose(found[FIRST_PRODUCT], 2.0 * plain[FIRST_PRODUCT])
    # the weight's gradient is another algorithm, and the bytes are those of both gradients
    np.testing.assert_array_equal(found[SECOND_PRODUCT], plain[SECOND_PRODUCT])
    assert found[BYTES] == plain[BYTES] * (2.0 if flags == "convolution" else 1.0)


@pytest.mark.parametrize(
    "name",
    ["convolution_backward dense k3x3 s1 no_input", "convolution dense k3x3 s1 half", "copy"],
)
def test_other_kernels_have_no_curves(name):
    every = curves(batch={"sizes": [1.0, 2.0], "factors": [9.0, 9.0]})
    known = ("convolution dense", "convolution_dgrad dense")
    curved = replace(RATES, curves=dict.fromkeys(known, every), weights={})
    np.testing.assert_array_equal(parts(curved, name), parts(RATES, name))


def test_predictions_use_the_fitted_curves_in_fp32_alone():
    rates = kernel_file().rates(device_spec("v100"), "fp32")
    assert rates is not None
    bare = replace(rates, curves={}, weights={})
    for name in ("convolution dense k3x3 s1", "convolution_backward dense k3x3 s1"):
        changed = parts(rates, name)[FIRST_PRODUCT][0] / parts(bare, name)[FIRST_PRODUCT][0]
        # few rows, columns and waves cost more than the terms say
        assert changed > 1.5, name
        half = f"{name} half"
        np.testing.assert_array_equal(parts(rates, half), parts(bare, half))


def test_fitted_curves_are_of_known_classes_and_stay_within_a_factor():
    known = kernel_file()
    assert set(known.curves) <= set(known.coefficients)
    rng = np.random.default_rng(0)
    batch = np.exp(rng.uniform(0.0, 7.0, 500))
    rows, columns, inner = np.exp(rng.uniform(0.0, 10.0, (3, 500)))
    for found in known.curves.values():
        for blocks in (10, 132):
            sizes = product_sizes(batch, rows, columns, inner, multiprocessors=blocks)
            factors = found.factors(sizes)
            assert (factors > 0.2).all()
            assert (factors < 8.0).all()
