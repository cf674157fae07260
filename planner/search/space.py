"""The search space: method and rank, micro-batch, precision, optimizer and checkpoint policy.

    Space            the dimensions for a backbone and the values of each
    SearchedMethod   a method and its ranks
    SearchPoint      one point: a workload and the policy that makes its placement
    Assignment       the same point as the value of each dimension, as a study stores it

The effective batch is the same for every point: a smaller micro-batch is accumulated more often.
Two points therefore differ in cost and not in the optimizer's gradients. Backbones with BatchNorm
are the exception if their statistics are those of a micro-batch, which on pretrained weights they
are not (``Workload.frozen_batch_norm``). Every dimension is finite, and ``Space.assignments``
enumerates all points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.placement.policies import parse_policy
from profiler.arrays import Ints
from profiler.devices.table import DeviceSpec
from profiler.errors import UnknownNameError, UsageError
from profiler.models.methods import method_infos, method_names
from profiler.placement import PolicyChoice
from profiler.store import Store
from profiler.workload import Workload

if TYPE_CHECKING:
    from torch import nn

Assignment = dict[str, str | int]
"""A point as the value of each dimension, by the name of the dimension."""

EFFECTIVE_BATCH = 32
"""Images per optimizer step in arXiv 2607.02158."""

RANKS = (2, 4, 8, 16, 32, 64)
"""Ranks of a method that are searched, unless ``COSTLY_RANKS`` has others."""

COSTLY_RANKS = {"side": (4, 8, 16), "partial_k": (1, 2, 4), "galore": (4, 8, 16)}
"""Ranks of methods whose every rank needs replays of its own. The choice takes the rank nearest to
the published default, so others would only lengthen the search."""

DEFAULT_CHECKPOINTS = ("none", "static", "optimal")
"""Checkpoint policies that are searched unless others are named."""

DEFAULT_OPTIMIZERS = ("adamw", "sgd")
"""Optimizers that are searched unless others are named."""

ADAMW_VARIANTS = ("galore",)
"""Methods that replace AdamW and refuse every other optimizer."""

LEAST_PARALLEL_CHECKS = 4
"""Number of methods from which on their forwards are checked in several processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedMethod:
    """A method and the ranks to search.

    Attributes:
        name: name of the method.
        ranks: ranks (or widths, or numbers of tokens), ascending; empty if the method has none.
        default_rank: the method's own default; None if it has no rank.
    """

    name: str
    ranks: tuple[int, ...] = ()
    default_rank: int | None = None

    def __post_init__(self) -> None:
        if (self.default_rank is None) != (not self.ranks):
            raise UsageError(
                f"method {self.name} needs both ranks and a default rank, or neither, "
                f"got {self.ranks} and {self.default_rank}"
            )

    @property
    def rank_dimension(self) -> str:
        """Name of the dimension of the rank. Each method has its own: ranks do not compare."""
        return f"{self.name}_rank"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPoint:
    """One point of the space.

    Attributes:
        workload: the workload, without a placement.
        policy: checkpoint policy that makes the placement.
    """

    workload: Workload
    policy: PolicyChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The dimensions for a backbone and the values of each.

    Attributes:
        base: model, image size and classes, which all points share.
        methods: methods, at least one.
        micro_batches: divisors of the effective batch, ascending.
        effective_batch: images per optimizer step.
        precisions: ``fp32`` and the half precision of the device.
        optimizers: optimizers; a method that is a variant of AdamW has no such dimension.
        checkpoints: checkpoint policies as ``planner.placement.policies.parse_policy`` reads them.

    Raises:
        UsageError: a dimension is empty, or a micro-batch does not divide the effective batch.
        UnknownNameError: no such policy.
    """

    base: Workload
    methods: tuple[SearchedMethod, ...]
    micro_batches: tuple[int, ...]
    effective_batch: int
    precisions: tuple[str, ...]
    optimizers: tuple[str, ...] = DEFAULT_OPTIMIZERS
    checkpoints: tuple[str, ...] = DEFAULT_CHECKPOINTS

    def __post_init__(self) -> None:
        for name in ("methods", "micro_batches", "precisions", "optimizers", "checkpoints"):
            if not getattr(self, name):
                raise UsageError(f"the search needs at least one of {name.replace('_', '-')}")
        for name in self.checkpoints:
            parse_policy(name)
        for size in self.micro_batches:
            if self.effective_batch % size:
                raise UsageError(
                    f"micro-batch {size} does not divide the effective batch "
                    f"{self.effective_batch}; use one of {divisors(self.effective_batch)}"
                )

    def method(self, name: str) -> SearchedMethod:
        """Return the method of a name.

        Raises:
            UnknownNameError: the space does not have it.
        """
        found = next((method for method in self.methods if method.name == name), None)
        if found is None:
            raise UnknownNameError(
                kind="method", name=name, known=[method.name for method in self.methods]
            )
        return found

    def dimensions(self, method: SearchedMethod) -> dict[str, Sequence[str | int]]:
        """Return the values of every dimension that a point with the method has, method apart.

        The order of the dimensions is part of a seeded search: the sampler draws in this order.
        """
        rank = {method.rank_dimension: method.ranks} if method.ranks else {}
        optimizer = {} if self._is_adamw_only(method) else {"optimizer": self.optimizers}
        return rank | {
            "micro_batch": self.micro_batches,
            "precision": self.precisions,
            **optimizer,
            "checkpoint": self.checkpoints,
        }

    def _is_adamw_only(self, method: SearchedMethod) -> bool:
        """Return whether the method is a variant of AdamW, which leaves no choice of optimizer."""
        return method.name in ADAMW_VARIANTS and "adamw" in self.optimizers

    def point(self, assignment: Assignment) -> SearchPoint:
        """Return the point with the assigned values."""
        method = self.method(str(assignment["method"]))
        rank = assignment[method.rank_dimension] if method.ranks else None
        micro_batch = int(assignment["micro_batch"])
        workload = self.base.replace(
            method=method.name,
            rank=rank,
            micro_batch=micro_batch,
            accumulation=self.effective_batch // micro_batch,
            precision=assignment["precision"],
            optimizer=assignment.get("optimizer", "adamw"),
        )
        policy = parse_policy(str(assignment["checkpoint"]))
        return SearchPoint(workload=workload, policy=policy)

    def assignments(self) -> Iterator[Assignment]:
        """Yield the assignment of every point."""
        for method in self.methods:
            dimensions = {"method": (method.name,), **self.dimensions(method)}
            for values in product(*dimensions.values()):
                yield dict(zip(dimensions, values, strict=True))

    def workloads(self) -> Iterator[Workload]:
        """Yield the workload of every point, each once for all checkpoint policies."""
        one_policy = replace(self, checkpoints=self.checkpoints[:1])
        for assignment in one_policy.assignments():
            yield one_policy.point(assignment).workload

    def starting_points(self) -> list[Assignment]:
        """Return the points that a search starts with: two per method.

        The first has the largest micro-batch, the first precision, optimizer and policy, and the
        method's default rank. The second should need the least memory: the smallest micro-batch
        and rank, and the last precision, optimizer and policy.
        """
        plain = [self._corner(method, smallest=False) for method in self.methods]
        return plain + [self._corner(method, smallest=True) for method in self.methods]

    def _corner(self, method: SearchedMethod, *, smallest: bool) -> Assignment:
        end = -1 if smallest else 0
        assignment: Assignment = {
            "method": method.name,
            "micro_batch": self.micro_batches[0 if smallest else -1],
            "precision": self.precisions[end],
            "checkpoint": self.checkpoints[end],
        }
        if not self._is_adamw_only(method):
            assignment["optimizer"] = self.optimizers[end]
        if method.default_rank is not None:
            assignment[method.rank_dimension] = method.ranks[0] if smallest else method.default_rank
        return assignment

    def to_json(self) -> dict[str, Any]:
        """Return plain data that identifies the space, for a study's attributes."""
        return {
            "base": self.base.to_json(),
            "methods": {method.name: list(method.ranks) or None for method in self.methods},
            "micro_batches": list(self.micro_batches),
            "effective_batch": self.effective_batch,
            "precisions": list(self.precisions),
            "optimizers": list(self.optimizers),
            "checkpoints": list(self.checkpoints),
        }


# ---- what goes into a space ----------------------------------------------------------------------


def divisors(number: int) -> tuple[int, ...]:
    """Return all divisors, ascending."""
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def precisions_for(spec: DeviceSpec) -> tuple[str, ...]:
    """Return fp32 and the half precision of a device: bf16, or fp16 before Ampere.

    From Ampere on, fp16 has the bytes and the rates of bf16 and needs a gradient scaler besides.
    """
    return ("fp32", "bf16" if spec.has_bf16 else "fp16")


def searched_method(name: str, ranks: tuple[int, ...] | None = None) -> SearchedMethod:
    """Return a method with the ranks to search, the method's default among them.

    Args:
        name: name of the method.
        ranks: ranks to search; None for those that the method is usually searched with.

    Raises:
        UnknownNameError: no such method.
    """
    from profiler.models.methods import get_method

    known = {info.name: info for info in method_infos()}
    default = known[name].default_rank if name in known else get_method(name).default_rank
    if default is None:
        return SearchedMethod(name=name)
    if ranks is None:
        ranks = COSTLY_RANKS.get(name, RANKS)
    return SearchedMethod(name=name, ranks=tuple(sorted({*ranks, default})), default_rank=default)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedRanks:
    """Stored fact that a method works on a backbone, and with which ranks.

    Attributes:
        ranks: [ranks] accepted ranks; empty for a method without a rank.
    """

    ranks: Ints


def limit_ranks(method: SearchedMethod, base: Workload) -> SearchedMethod:
    """Return the method without the ranks that it refuses on a backbone.

    ``partial_k``, for example, refuses to train more units than the backbone has. If the method
    refuses every rank, all are kept, and their trials fail with the reason.

    Raises:
        UnknownNameError: no such method or model.
    """
    from profiler.models.methods import get_method

    if not method.ranks:
        return method
    workload = base.replace(method=method.name)

    def accepted() -> AcceptedRanks:
        applied, model = get_method(method.name), _on_meta(base)
        found = [
            r for r in method.ranks if applied.refusal(model, workload.replace(rank=r)) is None
        ]
        return AcceptedRanks(ranks=np.array(found, dtype=np.int64))

    key = ("accepted ranks", workload.to_json(), method.ranks)
    stored = Store.default().fetch(AcceptedRanks, key, accepted)
    ranks = tuple(map(int, stored.ranks)) or method.ranks
    default = method.default_rank if method.default_rank in ranks else ranks[-1]
    return replace(method, ranks=ranks, default_rank=default)


def working_methods(workload: Workload, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the methods that work on a backbone, and the reason for each that does not.

    A method works if it accepts the backbone and the forward of its model runs on shapes alone.

    Raises:
        UnknownNameError: no such method or model.
    """
    store = Store.default()
    # Of a method that works nothing is imported then; peft alone takes seconds.
    unknown = [name for name in names if not store.holds(_works_key(workload, name))]
    ahead = _checked_in_parallel(workload, unknown, store)
    found = {
        name: ahead[name] if name in ahead else _refusal_of_method(workload, name, store)
        for name in unknown
    }
    refused = {name: reason for name, reason in found.items() if reason is not None}
    return [name for name in names if name not in refused], refused


def _works_key(workload: Workload, name: str) -> tuple[object, ...]:
    """Return the key of the stored fact that a method works on a workload's backbone."""
    return "method works", workload.replace(method=name, micro_batch=2).to_json()


def _checked_in_parallel(
    workload: Workload, names: Sequence[str], store: Store
) -> dict[str, str | None]:
    """Return the refusal of each method, None if it works; empty where nothing can be forked."""
    from planner.parallel import map_forked
    from profiler.models.methods import get_method

    if len(names) < LEAST_PARALLEL_CHECKS:
        return {}
    for name in names:
        get_method(name)  # imported once, before the fork
    _on_meta(workload)
    found = map_forked(
        lambda name: _refusal_of_method(workload, name, store), names, lambda *_: None
    )
    return {names[index]: reason for index, reason in found.items()}


def _refusal_of_method(workload: Workload, name: str, store: Store) -> str | None:
    """Return why a method does not work on a backbone; None, and store it, if it works."""
    from profiler.models.forward_check import refusal_of_forward
    from profiler.models.methods import get_method

    key, changed = _works_key(workload, name), workload.replace(method=name, micro_batch=2)
    if store.holds(key):
        return None
    method = get_method(name)
    reason = method.refusal(_on_meta(workload), changed) or refusal_of_forward(
        method.resolve(changed)
    )
    if reason is None:
        store.keep(key, AcceptedRanks(ranks=np.array([], dtype=np.int64)))
    return reason


def refusal_of_one_image(base: Workload, methods: Sequence[SearchedMethod]) -> str | None:
    """Return why one image is too few for a method (BatchNorm's statistics); None if it is not."""
    from profiler.models.forward_check import refusal_of_forward

    workloads = (base.replace(method=m.name, rank=m.default_rank, micro_batch=1) for m in methods)
    return next((reason for each in workloads if (reason := refusal_of_forward(each))), None)


def _on_meta(workload: Workload) -> nn.Module:
    """Build the backbone on the meta device: shapes without memory."""
    from profiler.models import backbones

    return backbones.shared_shapes(
        workload.model,
        num_classes=workload.num_classes,
        image_size=workload.image_size,
    )


def parse_methods(text: str) -> list[str]:
    """Return the method names in ``lora,full``, each once, or all methods for ``all``.

    Raises:
        UnknownNameError: no such method.
    """
    from profiler.models.methods import get_method

    if text.strip() == "all":
        return method_names()
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UnknownNameError(kind="method", name=text, known=method_names())
    for name in names:
        get_method(name)
    return list(dict.fromkeys(names))
