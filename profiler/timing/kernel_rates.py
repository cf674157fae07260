"""Seconds of GPU kernels from fitted coefficients and a device's data sheet.

``kernel_coefficients.json`` holds, for each class of kernels, the coefficients of the terms of
``profiler.timing.kernel_terms``. They were fitted to published measurements; ``studies/time_model``
has the errors. A coefficient is dimensionless: 1.2 for ``bytes`` means 1.2 times the time that the
data sheet's bandwidth allows. So coefficients transfer to other GPUs, with a larger error, which
``spreads`` states. Batched products and dense convolutions in fp32, and the gradients of the
latter's inputs, also have curves over their sizes (``profiler.timing.size_curves``).

Four corrections depend on the GPU or its host:

    sustained clock  A board of little power cannot hold its boost clock in matrix products. Its
                     peak FLOP rates are multiplied by share ** exponent, where `share` is its watts
                     per FP32 FLOP/s over those of the largest measured board of its generation, at
                     most 1.
    power bound      fp32 products of some classes (coefficient ``bound``) hold the boost clock
                     until their power reaches the limit: they take at least `bound` times their
                     FLOPs over the peak rate and `share`. The larger time decides, smoothly.
    bandwidth        No board reaches the bandwidth of its data sheet. Coefficients are relative to
                     a board that reaches the share `reference`; the bandwidth of others is
                     multiplied by their own share over that. Data-centre boards with GDDR lose an
                     eighth to the error correction, which shares the bus.
    host             A step takes at least its number of launches times the host's seconds for one.

Limitations: cuDNN and cuBLAS choose kernels by heuristics that no formula here has. Clocks, cooling
and the host of the reader's machine are not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from profiler.arrays import Floats, Ints
from profiler.devices.host_link import (
    HOST_UPDATE_BYTES_PER_SECOND,
    HOST_WORK_SECONDS,
    HostWork,
)
from profiler.devices.table import TIMED, DeviceSpec
from profiler.records import Origin, Spread
from profiler.timing.kernel_terms import (
    BYTES,
    FIRST_PRODUCT,
    HOST_WORK,
    LATENCY,
    MOVED,
    SECOND_PRODUCT,
    SLOTS,
    VOLTA,
    PeakRate,
    ProductLayout,
    Slot,
    first_product,
    is_plain,
    kernel_terms,
    layout_of,
    slot_keys,
)
from profiler.timing.lever_factors import NO_LEVERS, LeverFactors, lever_factors
from profiler.timing.power import PowerModel
from profiler.timing.size_curves import SizeCurves, product_sizes

COEFFICIENTS_FILE = Path(__file__).with_name("kernel_coefficients.json")

DEFAULT_CLASS = "elementwise"

SMALLEST_SIZE = 1e-3
"""Sizes of empty products are raised to it, whose logarithm is finite."""

BOUND, SHARPNESS = "bound", 8.0
"""Name of the coefficient of the power bound, and exponent by which the larger time decides."""

COEFFICIENTS_SCHEMA = "budgetplan.kernel_coefficients/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRates:
    """Coefficients and rates for a GPU and a precision.

    Attributes:
        half_flops: FLOP/s of 16-bit matrix products.
        single_flops: FLOP/s of the FP32 units at the clock that the board sustains.
        boost_flops: the same at the boost clock, for classes with a power bound.
        bytes_per_second: memory bandwidth.
        multiprocessors: number of multiprocessors.
        link_bytes_per_second: bandwidth of copies between host and device; None if it is unknown,
            and no time of a placement with copies is computed then.
        coefficients: coefficient by class and term.
        power_share: `share` of the power bound.
        before_volta: whether fp32 products read a matrix again (``kernel_terms``), and 16-bit ones
            take as long as in fp32, because no units compute them faster.
        curves: curves over sizes by class.
        factors: factors of the workload's levers.
        weights: seconds for a unit of each quantity, by kernel name, filled as names are met.
    """

    half_flops: float
    single_flops: float
    boost_flops: float
    bytes_per_second: float
    multiprocessors: int
    coefficients: Mapping[str, Mapping[str, float]]
    power_share: float = 1.0
    before_volta: bool = False
    curves: Mapping[str, SizeCurves] = field(default_factory=dict)
    link_bytes_per_second: float | None = None
    factors: LeverFactors = NO_LEVERS
    weights: dict[str, list[float]] = field(default_factory=dict, compare=False, repr=False)

    def parts(
        self,
        names: Sequence[str] | npt.NDArray[np.str_],
        index: Ints,
        *,
        dims: Floats,
        moved_bytes: Floats,
        launches: Ints,
    ) -> Floats:
        """Return [operations, SLOTS] seconds of each term of each operation.

        Args:
            names: names of kernel shapes.
            index: [operations] position of each operation's name.
            dims: [operations, 6] dimensions.
            moved_bytes: [operations] bytes read and written.
            launches: [operations] kernels launched.
        """
        listed = list(map(str, names))
        if self.before_volta:
            listed = [in_fp32(name) for name in listed]
        terms = kernel_terms(
            listed,
            index,
            dims=dims,
            moved_bytes=moved_bytes,
            launches=launches,
            multiprocessors=self.multiprocessors,
            rereads=self.before_volta,
        )
        flops = terms[:, [FIRST_PRODUCT.start, SECOND_PRODUCT.start]]
        weights = np.array([self._weights(name) for name in listed]).reshape(len(listed), SLOTS)
        terms *= weights[index]
        if self.curves:
            self._apply_curves(terms, listed, index, dims)
        self._apply_power_bounds(terms, listed, index, flops)
        if self.factors != NO_LEVERS:
            terms *= self.factors.of_operations(listed, index, dims)
        return terms

    def _apply_curves(self, seconds: Floats, names: list[str], index: Ints, dims: Floats) -> None:
        """Multiply the first products of kernels, and the bytes of forward ones, by curves."""
        classes = [slot_keys(name)[0].kernel_class for name in names]
        layouts = np.array([layout_of(name).value for name in names])
        for kernel_class, curves in self.curves.items():
            has_curves = np.array([name == kernel_class for name in classes], dtype=bool)
            chosen = np.flatnonzero(has_curves[index])
            if not len(chosen):
                continue
            layout = layouts[index[chosen]]
            sizes = product_sizes(
                *first_product(layout, dims[chosen]), multiprocessors=self.multiprocessors
            )
            factors = curves.factors(np.maximum(sizes, SMALLEST_SIZE))
            seconds[chosen, FIRST_PRODUCT] *= factors[:, None]
            seconds[chosen, BYTES] *= np.where(is_plain(layout), factors, 1.0)

    def _apply_power_bounds(
        self, seconds: Floats, names: list[str], index: Ints, flops: Floats
    ) -> None:
        """Prolong products that the board's power does not sustain at the boost clock.

        Args:
            seconds: [operations, SLOTS] seconds, which are changed.
            names: names of kernel shapes.
            index: [operations] position of each operation's name.
            flops: [operations, 2] FLOPs of the first and the second product.
        """
        slots = [slot_keys(name) for name in names]
        for position, product in enumerate((FIRST_PRODUCT, SECOND_PRODUCT)):
            classes = [slot[product.start].kernel_class for slot in slots]
            bounds = np.array([self._bound(name) for name in classes])
            if not bounds.any():
                continue
            chosen = np.flatnonzero(bounds[index] * flops[:, position])
            least = bounds[index[chosen]] * flops[chosen, position]
            least /= self.boost_flops * self.power_share
            columns = [*range(product.start, product.stop), *([BYTES] if position == 0 else [])]
            taken = seconds[np.ix_(chosen, columns)]
            taken *= power_bound_factor(taken.sum(axis=1), least)[:, None]
            seconds[np.ix_(chosen, columns)] = taken

    def _bound(self, kernel_class: str) -> float:
        return self.coefficients.get(kernel_class, {}).get(BOUND, 0.0)

    def _weights(self, name: str) -> list[float]:
        """Return [SLOTS] seconds for a unit of each quantity of a kernel name."""
        known = self.weights.get(name)
        if known is None:
            known = self.weights[name] = self._new_weights(name)
        return known

    def _new_weights(self, name: str) -> list[float]:
        if name in HOST_WORK:
            is_update = name == HostWork.UPDATE
            rate = HOST_UPDATE_BYTES_PER_SECOND if is_update else self.link_bytes_per_second
            weights = [0.0] * SLOTS
            weights[LATENCY] = HOST_WORK_SECONDS
            weights[MOVED] = 0.0 if rate is None else 1.0 / rate
            return weights
        return [
            self._coefficient(slot) * self._unit(slot) if slot.kernel_class else 0.0
            for slot in slot_keys(name)
        ]

    def _unit(self, slot: Slot) -> float:
        """Return the seconds for a unit of a slot's quantity at a coefficient of 1."""
        if slot.rate is PeakRate.SINGLE and self._bound(slot.kernel_class):
            return 1.0 / self.boost_flops
        rate = {
            PeakRate.HALF: self.half_flops,
            PeakRate.SINGLE: self.single_flops,
            PeakRate.BYTES: self.bytes_per_second,
            PeakRate.LAUNCHES: 1.0,
        }[slot.rate]
        return 1.0 / rate

    def _coefficient(self, slot: Slot) -> float:
        """Return a coefficient; a class that was not fitted takes those of ``DEFAULT_CLASS``."""
        known = self.coefficients.get(slot.kernel_class)
        return (self.coefficients[DEFAULT_CLASS] if known is None else known).get(slot.term, 0.0)


@cache
def in_fp32(name: str) -> str:
    """Return the name of a kernel shape with its products, if it has some, in fp32."""
    if layout_of(name) is ProductLayout.NONE:
        return name
    return " ".join(flag for flag in name.split() if flag != "half")


def power_bound_factor(seconds: Floats, least: Floats) -> Floats:
    """Return [products] factors by which [products] seconds reach those that the power allows."""
    ratio = np.divide(least, seconds, out=np.zeros(len(seconds)), where=seconds > 0)
    longer = np.maximum(ratio, 1.0)
    found: Floats = longer * (1.0 + (np.minimum(ratio, 1.0) / longer) ** SHARPNESS) ** (
        1 / SHARPNESS
    )
    return found


class KernelFile:
    """Content of ``kernel_coefficients.json``.

    Args:
        data: the JSON object.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        assert data["schema"] == COEFFICIENTS_SCHEMA, data["schema"]
        self.coefficients: Mapping[str, Mapping[str, float]] = data["coefficients"]
        self.curves: Mapping[str, SizeCurves] = {
            name: SizeCurves(curves) for name, curves in data["size_curves"].items()
        }
        self._fitted: Sequence[Mapping[str, str]] = data["fitted_on"]
        self._clock: Mapping[str, Any] = data["sustained_clock"]
        self._bandwidth: Mapping[str, Any] = data["sustained_bandwidth"]
        self._power: Mapping[str, Any] = data["power"]
        self._rates: dict[tuple[DeviceSpec, str, tuple[str, ...]], KernelRates] = {}
        self._spreads: Mapping[str, Mapping[str, Any]] = data["spreads"]

    def origin(self, device: DeviceSpec, precision: str) -> Origin:
        """Return where the seconds of a device at a precision come from."""
        if device.source == TIMED or _generation(device) not in self._clock["measured"]:
            return Origin.DATA_SHEET
        fitted = any(
            (row["device"], row["precision"]) == (device.name, precision) for row in self._fitted
        )
        return Origin.FITTED if fitted else Origin.TRANSFERRED

    def spread(self, origin: Origin) -> Spread:
        """Return the ratios of measured to predicted seconds for predictions of an origin."""
        return _spread(self._spreads[origin.value])

    def sustained_clock(self, device: DeviceSpec) -> float:
        """Return the share of the boost clock that the board's power sustains."""
        share: float = self.power_share(device) ** self._clock["exponent"]
        return share

    def power_share(self, device: DeviceSpec) -> float:
        """Return the watts per FLOP/s over those of its generation's largest board, at most 1."""
        full = self._clock["watts_per_flops"].get(_generation(device))
        if full is None or device.tdp_watts is None or device.fp32_flops is None:
            return 1.0
        return float(min(1.0, device.tdp_watts / device.fp32_flops / full))

    def sustained_bandwidth(self, device: DeviceSpec) -> float:
        """Return the bandwidth that the board sustains over that of the coefficients' board.

        A bandwidth that was timed here is itself the sustained one.
        """
        reference: float = self._bandwidth["reference"]
        if device.source == TIMED:
            return 1.0 / reference
        by_generation = self._bandwidth["by_generation"].get(_generation(device), reference)
        share: float = self._bandwidth["by_device"].get(device.name, by_generation)
        return share / reference

    def power_origin(self, device: DeviceSpec) -> Origin:
        """Return where the power of a device comes from."""
        known = _generation(device) in self._power["measured"]
        return Origin.TRANSFERRED if known else Origin.DATA_SHEET

    def power_spread(self, device: DeviceSpec) -> Spread:
        """Return the ratios of measured to predicted power."""
        return _spread(self._spreads[f"power, {self.power_origin(device).value}"])

    def power_limit_spread(self) -> Spread:
        """Return the ratios of measured to predicted time under a power limit."""
        return _spread(self._spreads["time under a power limit"])

    def power(self, device: DeviceSpec) -> PowerModel | None:
        """Return the power model of a GPU; None if its data sheet lacks a number.

        A board of a generation that the file lacks is assumed to reach its own limit.
        """
        numbers = self._power
        flops, moved = device.fp32_flops, device.memory_bandwidth_bytes_per_second
        if device.tdp_watts is None or flops is None or moved is None:
            return None
        idle = numbers["idle"].get(_generation(device), numbers["idle_elsewhere"])
        memory = numbers["joules_per_byte"] * moved
        joules = numbers["joules_per_flop"].get(_generation(device))
        at_full_load = (numbers["at_full_load"] - idle) * device.tdp_watts - memory
        return PowerModel(
            idle_watts=idle * device.tdp_watts,
            product_watts=max(at_full_load, 0.0) if joules is None else joules * flops,
            memory_watts=memory,
            floor=numbers["floor"],
            limit_watts=device.tdp_watts,
            reached=numbers["reached"],
            sharpness=numbers["sharpness"],
            fixed_memory=numbers["fixed_memory"],
            slowdown_exponent=numbers["slowdown_exponent"],
        )

    def rates(
        self, device: DeviceSpec, precision: str, levers: tuple[str, ...] = ()
    ) -> KernelRates | None:
        """Return the rates of a GPU under levers; None if its data sheet lacks one."""
        single, moved = device.fp32_flops, device.memory_bandwidth_bytes_per_second
        if single is None or moved is None or device.sm_count is None:
            return None
        key = (device, precision, levers)
        if key not in self._rates:
            made = self._new_rates(device, precision, single=single, moved=moved)
            self._rates[key] = replace(made, factors=lever_factors(device, levers))
        return self._rates[key]

    def _new_rates(
        self, device: DeviceSpec, precision: str, *, single: float, moved: float
    ) -> KernelRates:
        # PyTorch emulates bf16 where there are no cores for it
        tensor = {"bf16": device.bf16_tensor_flops, "fp16": device.fp16_tensor_flops}
        half = tensor.get(precision) or single
        clock = self.sustained_clock(device)
        assert device.sm_count is not None
        boost = single * self._peak_over_known(device, "matmul")
        return KernelRates(
            half_flops=clock * half * self._peak_over_known(device, "matmul half"),
            single_flops=clock * boost,
            boost_flops=boost,
            power_share=self.power_share(device),
            # the time of a timed product holds its rereading, and its precision
            before_volta=device.source != TIMED and (device.compute_capability or VOLTA) < VOLTA,
            bytes_per_second=moved * self.sustained_bandwidth(device),
            multiprocessors=device.sm_count,
            link_bytes_per_second=device.link_bytes_per_second,
            coefficients=self.coefficients,
            curves=self.curves,
        )

    def _peak_over_known(self, device: DeviceSpec, product: str) -> float:
        """Return the FLOP rate that coefficients are relative to over the device's known one.

        A data sheet has the peak. A rate that was timed here is that of a large product, which
        reaches the peak over the sum of the coefficients.
        """
        if device.source != TIMED:
            return 1.0
        terms = self.coefficients[product]
        at_boost = terms.get("flops", 0.0) + terms.get("tile", 0.0)
        factor = power_bound_factor(np.array([at_boost]), np.array([terms.get(BOUND, 0.0)]))
        return at_boost * float(factor[0])


def _generation(device: DeviceSpec) -> str:
    """Return the compute capability as text, the key of a generation of chips."""
    return ".".join(map(str, device.compute_capability or ()))


def _spread(row: Mapping[str, Any]) -> Spread:
    return Spread(low=row["low"], high=row["high"], coverage=row["coverage"])


@cache
def kernel_file() -> KernelFile:
    """Return ``kernel_coefficients.json``, read once."""
    return KernelFile(json.loads(COEFFICIENTS_FILE.read_text(encoding="utf-8")))
