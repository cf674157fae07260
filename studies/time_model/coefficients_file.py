"""Writes the product's ``kernel_coefficients.json`` from the fits.

Fitted: 16-bit classes and all memory-bound ones on the RTX 3090's training runs, together with
NeuSight's fp32 kernels; fp32 products on NeuSight's kernels. Filled in without a run:

- a class seen in one precision only has the same dimensionless coefficients in the other;
- fp32 convolutions take NeuSight's forward 3 x 3 convolution, pointwise ones its linear layer, for
  both gradients too; the launch is that of the RTX 3090, since NeuSight's timings include the
  host's;
- fused attention, which no run has, is in ``assumed``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fit import RECORDED, Key
from kernel_fit import Curves
from kernels import KernelFit, reference_share

from profiler.timing.kernel_rates import BOUND, COEFFICIENTS_FILE, COEFFICIENTS_SCHEMA

LAUNCH_SECONDS = 4e-6

_PRODUCTS = ("matmul", "batched_matmul", "convolution", "convolution_dgrad", "convolution_wgrad")

Coefficients = dict[str, dict[str, float]]

GDDR_WITH_CORRECTION = ("p4", "p40", "t4", "a2", "a10", "a16", "a40", "l4", "l40s")
"""Data-centre boards with GDDR memory. They correct errors unless that is switched off, and the
correction shares the memory's bus. Of these the T4 and the P4 were measured."""


def write(
    fitted: Mapping[Key, float], products: Mapping[str, KernelFit], values: Mapping[str, Any]
) -> None:
    """Write the coefficients; the parts on clocks, power and assumptions stay as they are.

    Args:
        fitted: coefficients of the RTX 3090's training runs.
        products: fits of fp32 products.
        values: errors of the study, which give the spreads.
    """
    data = json.loads(COEFFICIENTS_FILE.read_text(encoding="utf-8"))
    assert data["schema"] == COEFFICIENTS_SCHEMA
    steps, other = values["steps"], values["inference"]["rtx5090_from_rtx3090"]
    data["fitted_on"] = [
        {
            "device": "rtx-3090",
            "precision": "fp16",
            "runs": steps["rows"],
            "families": steps["families"],
        }
    ]
    for origin, (low, high) in {
        "fitted on this GPU": steps["spread"],
        "transferred from relatives": other["spread"],
    }.items():
        data["spreads"][origin] |= {"low": low, "high": high, "coverage": 0.9}
    data["sustained_bandwidth"] = _sustained_bandwidth(values["sustained_bandwidth"])
    classes = _by_class({key: v for key, v in fitted.items() if not key[0].startswith(RECORDED)})
    optimizer = classes.pop("optimizer")
    classes = with_single_products(classes, products)
    classes |= {name: dict(optimizer) for name in ("foreach", "foreach strided")}
    classes |= {n: v for n, v in data["coefficients"].items() if n.startswith("attention")}
    _fill_precisions(classes)
    _fill_depthwise(classes)
    data["coefficients"] = _rounded(classes)
    data["size_curves"] = curves_of(products)
    COEFFICIENTS_FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def write_products(products: Mapping[str, KernelFit]) -> None:
    """Write the coefficients and the curves of fp32 products; everything else stays as it is."""
    data = json.loads(COEFFICIENTS_FILE.read_text(encoding="utf-8"))
    data["coefficients"] = _rounded(with_single_products(data["coefficients"], products))
    data["size_curves"] = curves_of(products)
    COEFFICIENTS_FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _rounded(classes: Mapping[str, Mapping[str, float]]) -> Coefficients:
    """Return the classes with four digits and without coefficients that are 0."""
    return {
        name: {term: float(f"{value:.4g}") for term, value in sorted(terms.items()) if value > 0}
        for name, terms in sorted(classes.items())
        if any(value > 0 for value in terms.values())
    }


def _sustained_bandwidth(shares: Mapping[str, float]) -> dict[str, Any]:
    """Return the shares of the bandwidth by device and generation of chips."""
    corrected = round((shares["T4"] + shares["P4"]) / 2, 3)
    by_device = dict.fromkeys(GDDR_WITH_CORRECTION, corrected)
    return {
        "reference": round(reference_share(shares), 3),
        "by_generation": {
            "6.0": shares["P100 PCIe"], "6.1": shares["P100 PCIe"],
            "7.0": shares["V100 PCIe"], "8.0": shares["A100 PCIe"],
        },
        "by_device": by_device | {"t4": shares["T4"], "p4": shares["P4"]},
    }  # fmt: skip


def _by_class(coefficients: Mapping[Key, float]) -> Coefficients:
    found: Coefficients = {}
    for (name, term), value in coefficients.items():
        found.setdefault(name, {})[term] = float(value)
    return found


def with_single_products(
    classes: Mapping[str, Mapping[str, float]], products: Mapping[str, KernelFit]
) -> Coefficients:
    """Return the classes of kernels with fp32 products from NeuSight's fits."""
    single: Coefficients = {}
    for found in products.values():
        fitted = found.fitted
        (name,) = {kernel_class for kernel_class, _ in found.keys}
        values = zip(found.keys, map(float, fitted.coefficients), strict=True)
        single[name] = {term: value for (_, term), value in values} | {"launch": LAUNCH_SECONDS}
        if fitted.bound is not None:
            single[name][BOUND] = fitted.bound
    changed = {name: dict(terms) for name, terms in classes.items()}
    changed |= {name: single[name] for name in ("matmul", "batched_matmul")}
    for kind in ("convolution", "convolution_dgrad", "convolution_wgrad"):
        changed |= {
            f"{kind} {grouping}": dict(single["convolution dense"])
            for grouping in ("dense", "grouped")
        }
        changed[f"{kind} pointwise"] = dict(single["matmul"])
    return changed


def curves_of(products: Mapping[str, KernelFit]) -> dict[str, Curves]:
    """Return the curves by class; an input's gradient takes those of the forward convolution."""
    convolution, batched = products["conv"].fitted.curves, products["bmm"].fitted.curves
    assert convolution is not None
    assert batched is not None
    return {
        "batched_matmul": batched,
        "convolution dense": convolution,
        "convolution_dgrad dense": convolution,
    }


def _fill_precisions(classes: Coefficients) -> None:
    for name, terms in list(classes.items()):
        kind, *flags = name.split()
        if kind in _PRODUCTS and "depthwise" not in flags:
            continue
        is_half = "half" in flags
        if is_half:
            other = [kind, *(flag for flag in flags if flag != "half")]
        else:  # the order of flags in ``kernel_class``
            other = [kind, *flags, "half"] if "depthwise" in flags else [kind, "half", *flags]
        if " ".join(other) not in classes:
            copied = dict(terms)
            if "values" in copied:  # a value has twice the bytes
                copied["values"] *= 2.0 if is_half else 0.5
            classes[" ".join(other)] = copied


def _fill_depthwise(classes: Coefficients) -> None:
    for kind in ("convolution", "convolution_backward"):
        for size in ("k3", "k5", "k7"):
            for flags in ("", " strided"):
                for half in ("", " half"):
                    name = f"{kind} depthwise {size}{flags}{half}"
                    near = (f"{kind} depthwise {size}{half}", f"{kind} depthwise k5{flags}{half}")
                    known = next((classes[n] for n in (name, *near) if n in classes), None)
                    assert known is not None, name
                    classes[name] = dict(known)


LARGEST_BOARDS = {
    "5.3": (10.0, 0.236e12, 25.6e9),
    "6.1": (250.0, 12.15e12, 547.6e9),
    "6.2": (15.0, 0.666e12, 59.7e9),
    "7.2": (30.0, 1.41e12, 136.5e9),
    "8.0": (250.0, 19.5e12, 1555e9),
    "8.6": (350.0, 35.6e12, 936e9),
    "8.7": (350.0, 35.6e12, 936e9),
    "8.9": (450.0, 82.6e12, 1008e9),
    "9.0": (700.0, 67e12, 3350e9),
    "10.0": (1000.0, 74.45e12, 8000e9),
    "12.0": (575.0, 104.8e12, 1790e9),
}
"""Watts, FP32 FLOP/s and bytes/s of the largest board by compute capability: Jetson Nano, Titan Xp,
Jetson TX2, AGX Xavier, A100 PCIe, RTX 3090 (for Orin too), RTX 4090, H100, B200, RTX 5090. None of
them has a published trace."""

MEASURED = ("6.0", "7.0", "7.5")
"""Generations of the cards with traces."""

HBM = ("6.0", "7.0", "8.0", "9.0", "10.0")

REACHED_AT_FULL_LOAD = 1.05
"""Free watts of a largest board over its limit: those of V100 and RTX 6000 are 1.0 to 1.1."""


def write_power(values: Mapping[str, Any]) -> None:
    """Write the power part of the coefficients.

    Args:
        values: the study's ``power``: fit and spread.
    """
    data = json.loads(COEFFICIENTS_FILE.read_text(encoding="utf-8"))
    fit, power = values["fit"], data["power"]
    power["measured"] = measured = list(MEASURED)
    idle = {
        key: fit["idle_hbm" if key in HBM else "idle_gddr"] for key in (*measured, *LARGEST_BOARDS)
    }
    joules = dict.fromkeys(measured, fit["joules_per_flop"])
    for key, (watts, flops, moved) in LARGEST_BOARDS.items():
        rest = (REACHED_AT_FULL_LOAD - idle[key]) * watts - fit["joules_per_byte"] * moved
        joules[key] = max(rest, 0.0) / flops
    power |= {
        name: float(f"{fit[name]:.4g}")
        for name in ("joules_per_byte", "floor", "reached", "sharpness")
    }
    power["idle_elsewhere"] = float(f"{fit['idle_gddr']:.4g}")
    power["at_full_load"] = REACHED_AT_FULL_LOAD
    power |= {name: float(f"{value:.4g}") for name, value in values["limits"]["fit"].items()}
    power["idle"] = {key: float(f"{value:.4g}") for key, value in idle.items()}
    power["joules_per_flop"] = {key: float(f"{value:.4g}") for key, value in joules.items()}
    low, high = values["limits"]["spread"]
    data["spreads"]["time under a power limit"] = {
        "low": low,
        "high": high,
        "coverage": 0.9,
        "measured_on": "busy cells at 60 % of the largest limit or more, each card left out",
    }
    low, high = values["spread"]
    data["spreads"]["power, transferred from relatives"] |= {
        "low": low,
        "high": high,
        "coverage": 0.9,
    }
    COEFFICIENTS_FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
