"""What the search may choose: method and rank, micro-batch, precision, optimizer, checkpointing.

    Space         the choices for one backbone; ``draw`` turns a way of choosing into a ``Choice``
    Choice        one point: a workload, and the policy that will place its checkpoints
    Plain, Ranked a method without a rank, and one with (a rank is drawn only for the second)
    working_methods, precisions_for, divisors   what goes into a space

The effective batch is the same everywhere: a smaller micro-batch is accumulated more often, so that
two choices differ in cost and not in what the optimizer sees (BatchNorm backbones excepted, whose
statistics are those of a micro-batch). Every dimension is finite; ``Space.choices`` lists them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from planner.placement.policies import parse_policy
from profiler.devices.table import DeviceSpec
from profiler.errors import UnknownNameError, UsageError
from profiler.models.methods import method_infos, method_names
from profiler.workload import Workload

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T", bound=str | int)

EFFECTIVE_BATCH = 32  # arXiv 2607.02158 trains with batches of 32

RANKS = (2, 4, 8, 16, 32, 64)

DEFAULT_CHECKPOINTS = ("none", "static", "optimal")

DEFAULT_OPTIMIZERS = ("adamw", "sgd")

BF16_CAPABILITY = (8, 0)  # Ampere; before it PyTorch emulates bfloat16


class Chooser(Protocol):
    """A way of choosing: a sampler, an enumeration, a fixed list of answers."""

    def __call__(self, name: str, options: Sequence[T]) -> T:
        """Return one of the options of a dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A method without a rank."""

    name: str

    def draw(self, choose: Chooser) -> None:
        """Return no rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A method with a rank (or a width, or a number of tokens), named in the parameter.

    Attributes:
        name: of the method.
        ranks: to choose from.
        default: the method's own.
    """

    name: str
    ranks: tuple[int, ...]
    default: int

    def draw(self, choose: Chooser) -> int:
        """Return the rank chosen for this method."""
        return choose(f"{self.name}_rank", self.ranks)


MethodChoice = Plain | Ranked


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One point of the space.

    Attributes:
        workload: all but the placement.
        checkpoint: the policy that makes the placement.
    """

    workload: Workload
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The choices for one backbone.

    Attributes:
        base: what is not chosen: model, image size, classes.
        methods: at least one.
        micro_batches: divisors of the effective batch, ascending.
        effective_batch: images per optimizer step.
        precisions: ``fp32`` and a half precision the device has.
        optimizers: for methods that bring none of their own.
        checkpoints: names of policies.
    """

    base: Workload
    methods: tuple[MethodChoice, ...]
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

    def draw(self, choose: Chooser) -> Choice:
        """Return the point that a way of choosing leads to."""
        names = tuple(method.name for method in self.methods)
        method = self.methods[names.index(choose("method", names))]
        rank = method.draw(choose)
        micro_batch = choose("micro_batch", self.micro_batches)
        workload = self.base.replace(
            method=method.name,
            rank=rank,
            micro_batch=micro_batch,
            accumulation=self.effective_batch // micro_batch,
            precision=choose("precision", self.precisions),
            optimizer=choose("optimizer", self.optimizers),
        )
        return Choice(workload=workload, checkpoint=choose("checkpoint", self.checkpoints))

    def choices(self) -> Iterator[dict[str, Any]]:
        """Yield every point, as the answers that lead to it."""
        pending: list[dict[str, Any]] = [{}]
        while pending:
            answers = pending.pop()
            open_dimension = _Recorder(answers)
            try:
                self.draw(open_dimension)
            except _Unanswered as question:
                pending += [answers | {question.name: o} for o in reversed(question.options)]
            else:
                yield answers

    def workloads(self) -> Iterator[Workload]:
        """Yield the workload of every point, whatever its checkpointing."""
        plain = replace(self, checkpoints=self.checkpoints[:1])
        for answers in plain.choices():
            yield plain.draw(_Recorder(answers)).workload

    def baselines(self) -> list[dict[str, Any]]:
        """Return points a search starts with: each method plainly, and at its cheapest.

        Plainly: the largest micro-batch, the first precision, optimizer and policy, the method's
        own rank. At its cheapest: one image at a time, the last of each and the lowest rank.
        """
        plain = [self._corner(method, cheapest=False) for method in self.methods]
        return plain + [self._corner(method, cheapest=True) for method in self.methods]

    def _corner(self, method: MethodChoice, *, cheapest: bool) -> dict[str, Any]:
        end = -1 if cheapest else 0
        answers: dict[str, Any] = {
            "method": method.name,
            "micro_batch": self.micro_batches[0 if cheapest else -1],
            "precision": self.precisions[end],
            "optimizer": self.optimizers[end],
            "checkpoint": self.checkpoints[end],
        }
        if isinstance(method, Ranked):
            answers[f"{method.name}_rank"] = method.ranks[0] if cheapest else method.default
        return answers

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the space, for a study's attributes."""
        return {
            "base": self.base.to_json(),
            "methods": {m.name: list(m.ranks) if isinstance(m, Ranked) else None
                        for m in self.methods},
            "micro_batches": list(self.micro_batches),
            "effective_batch": self.effective_batch,
            "precisions": list(self.precisions),
            "optimizers": list(self.optimizers),
            "checkpoints": list(self.checkpoints),
        }  # fmt: skip


class _Unanswered(Exception):  # noqa: N818  a question, not an error
    def __init__(self, name: str, options: Sequence[Any]) -> None:
        super().__init__(name)
        self.name = name
        self.options = options


class _Recorder:
    """Answers from a table and asks for the first answer it lacks."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers

    def __call__(self, name: str, options: Sequence[T]) -> T:
        if name not in self._answers:
            raise _Unanswered(name, options)
        return cast("T", self._answers[name])


def divisors(number: int) -> tuple[int, ...]:
    """Return all divisors, ascending."""
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def precisions_for(spec: DeviceSpec, *, checked_on_cpu: bool = False) -> tuple[str, ...]:
    """Return fp32 and the half precision that the device computes in: bf16, before Ampere fp16.

    Args:
        spec: what is planned for.
        checked_on_cpu: candidates will be run on a CPU, which is no place for fp16: a matmul there
            takes 28 times as long as in fp32 (a ViT-S MLP on a Xeon with AVX-512, torch 2.15).
    """
    capability = spec.compute_capability
    if capability is None or capability >= BF16_CAPABILITY:
        return ("fp32", "bf16")
    return ("fp32",) if checked_on_cpu else ("fp32", "fp16")


def method_choice(name: str, ranks: tuple[int, ...] = RANKS) -> MethodChoice:
    """Return a method with the ranks to search, its own default among them.

    Raises:
        UnknownNameError: no such method.
    """
    from profiler.models.methods import get_method

    known = {info.name: info for info in method_infos()}
    default = known[name].default_rank if name in known else get_method(name).default_rank
    if default is None:
        return Plain(name=name)
    return Ranked(name=name, ranks=tuple(sorted({*ranks, default})), default=default)


def on_backbone(choice: MethodChoice, base: Workload) -> MethodChoice:
    """Leave out the ranks that a method refuses on the backbone: more units than it has.

    Raises:
        UnknownNameError: no such method or model.
    """
    from profiler.models.methods import get_method

    if isinstance(choice, Plain):
        return choice
    method, model = get_method(choice.name), _on_meta(base)
    load = base.replace(method=choice.name)
    fitting = [r for r in choice.ranks if method.refusal(model, load.replace(rank=r)) is None]
    return replace(choice, ranks=tuple(fitting) or choice.ranks)


def working_methods(workload: Workload, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the methods that work on the backbone, and of the others why they do not.

    Raises:
        UnknownNameError: no such method or model.
    """
    from profiler.models.methods import get_method

    model = _on_meta(workload)
    refused = {}
    for name in names:
        reason = get_method(name).refusal(model, workload.replace(method=name))
        if reason is not None:
            refused[name] = reason
    return [name for name in names if name not in refused], refused


def _on_meta(workload: Workload) -> nn.Module:
    from profiler.models import backbones

    return backbones.build(
        workload.model,
        num_classes=workload.num_classes,
        image_size=workload.image_size,
        device="meta",
    )


def parse_methods(text: str) -> list[str]:
    """Read ``lora,full`` or ``all``.

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
