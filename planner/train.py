"""Train exactly what a plan says: same backbone, method, placement, batch, precision, optimizer.

    train                  epochs of steps, held-out accuracy in between, the result saved
    accuracy               share of held-out images classified right (validation uses it too)
    check_against_model    does the plan's model still exist, and is it still the same?
    choose_learning_rate   the paper's for loaded weights, a larger one for random weights

The step is that of ``profiler.step``, so what was predicted and measured is what runs. The rate is
constant, as in the code of arXiv 2607.02158; with random weights it rises linearly over the first
steps. An epoch has whole steps only: the images left over (fewer than a step takes) are others in
every epoch. Accuracy is that of all held-out images after an epoch and at the end, and of the same
few of them once a minute in between; each reading says of how many.

*Output*, all in one folder::

    plan.json         the plan
    training.json     accuracy by step and by epoch, learning rate, weights, data, placements used
    model/            what the method learned (peft's own format, or safetensors)
    checkpoint-N/     after step N: learned tensors, optimizer, random states; the last one stays

A checkpoint is written after every epoch and once a minute, beside its place and renamed, so an
interruption at any moment leaves a whole one. A resumed training ends as an uninterrupted one
does, bit for bit on a CPU.

*Out of memory.* A step that the allocator refuses in forward or backward is repeated, on the same
images and from the same random state, under a tighter placement of the same model
(``planner.stepdown``); the training stays there. Limitations: BatchNorm's running statistics see
the images of such a step twice, and an optimizer that runs out of memory while it updates cannot be
repeated and ends the training.

*The adaptive rule.* Given one (``planner.adaptive``), units are not placed as the plan says: the
rule decides at every entry. Once memory has run out, a fixed placement takes its place.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from planner.adaptive import AdaptiveRule, memory_in_use
from planner.data import ImageData, ImageSet, load_data, loader
from planner.plan import Plan, read_json, read_plan, versions, write_json, write_plan
from planner.stepdown import tighter_placements
from profiler.allocator import configure
from profiler.assembly import Assembly, assemble
from profiler.backbones import WeightSource, normalisation
from profiler.checkpointing import AppliedPlacement, apply_adaptive, apply_placement
from profiler.errors import (
    DeviceError,
    InputError,
    MeasurementError,
    UnknownNameError,
    UsageError,
)
from profiler.methods.learned import load_learned, save_learned
from profiler.placement import Placement
from profiler.sandbox import cap_cuda_memory, is_out_of_memory
from profiler.step import (
    Batch,
    TrainingStep,
    default_learning_rate,
    make_optimizer,
    settled_heap,
)
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from planner.cost import CostModel

SCHEMA = "budgetplan.training/1"
PLAN_FILE, HISTORY_FILE, MODEL_FOLDER = "plan.json", "training.json", "model"
RANDOM_WEIGHTS_RATE, RANDOM_WEIGHTS_BATCH = 5e-4, 512
"""AdamW's rate for training everything from random weights: DeiT's (2012.12877), scaled from its
batch by the square root, as Adam's is (2205.10287). On digits, 64 px, 44 steps of 32 images, ViT-S
got 47 % right at 1e-4, 33 % at 5e-4 and 11 % at 1e-3."""
BATCH_NORM_RATE = 1e-3
"""The same for a network without LayerNorm: Adam's own (1412.6980). ResNet-18 got 87 % right at
this rate and 54 % at 1e-4, all else as above."""
ADDED_RATE = 2e-3
"""AdamW's rate with random weights for what leaves the backbone's own parameters alone. On digits,
64 px, 88 steps of 32 images, ViT-S, against the paper's 5e-4: head 46 and 36 % right, side tuning
55 and 36 %, AdaptFormer 62 and 37 %, prefix 46 and 35 %. Where they change it gains nothing: BitFit
38 and 41 %, SSF 43 and 43 %, LoRA 16 and 57 % (44 steps)."""
BESIDE_THE_WEIGHTS = frozenset({"head", "adaptformer", "prefix", "side"})
WARM_UP_STEPS = 10
"""Steps of linear warm-up with random weights."""
INTERIM_SECONDS = 60.0
"""Of training, between two readings (and checkpoints) within an epoch."""
INTERIM_IMAGES = 64
"""Of a reading within an epoch: a few seconds on a slow CPU, a standard error of 6 % at most."""


# ---- what is reported ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Accuracy at one moment of a training.

    Attributes:
        step: optimizer steps done.
        seconds: of the training so far, evaluations and earlier runs included.
        loss: mean over this epoch so far.
        accuracy: fraction of ``images``.
        images: of the held-out ones, how many were looked at.
    """

    step: int
    seconds: float
    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where a training is: after a step, or at a reading.

    Attributes:
        epoch: from 1.
        epochs: in all.
        step: of this epoch, from 1.
        steps: of an epoch.
        done: fraction of the training.
        loss: mean over this epoch so far.
        reading: when this is one.
        message: what happened, when something did.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    done: float
    loss: float
    reading: Reading | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """One whole epoch: mean loss over its steps, held-out accuracy (fraction) and duration."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A learning rate and why it is that.

    Attributes:
        value: after warm-up.
        warm_up_steps: over which it rises linearly; 0 for none.
        reason: one clause.
    """

    value: float
    warm_up_steps: int
    reason: str

    def at(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        return self.value * min(1.0, (step + 1) / (self.warm_up_steps + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training did.

    Attributes:
        epochs: one entry for each whole one, those before a resume included.
        readings: accuracy over the training; the last is of all held-out images.
        learning_rate: with its reason.
        weights: where the backbone's weights came from; belongs beside every accuracy.
        data: the data source as plain data.
        placement: what the model followed at the end.
        step_downs: a sentence for every time memory ran out.
        output: the folder.
    """

    epochs: tuple[EpochResult, ...]
    readings: tuple[Reading, ...]
    learning_rate: LearningRate
    weights: WeightSource
    data: Mapping[str, Any]
    placement: Placement
    step_downs: tuple[str, ...]
    output: Path

    @property
    def accuracy(self) -> float:
        """Fraction of held-out images at the end."""
        return self.readings[-1].accuracy

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as in ``training.json``."""
        return {
            "schema": SCHEMA,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "readings": [asdict(reading) for reading in self.readings],
            "accuracy": self.accuracy,
            "learning_rate": asdict(self.learning_rate),
            "weights": asdict(self.weights),
            "data": dict(self.data),
            "placement": self.placement.to_json(),
            "step_downs": list(self.step_downs),
            "versions": versions(),
        }


# ---- checks before anything is run ---------------------------------------------------------------


def load_trained(
    output: Path, *, weights: Path | None = None, pretrained: bool = True, seed: int = 0
) -> nn.Module:
    """Return the model that a training left in its folder, ready to classify.

    It is called with images [batch, 3, size, size] as ``planner.data`` prepares them, and returns
    logits [batch, classes].

    Args:
        output: the folder.
        weights: the file of weights that the training was given, if it was.
        pretrained: whether the training might fetch weights.
        seed: of the training; random weights under an adapter are made of it.

    Raises:
        InputError: the folder holds no training, or one of another model.
    """
    plan = read_plan(output / PLAN_FILE)
    check_against_model(plan)
    torch.manual_seed(seed)
    assembly = assemble(plan.candidate.workload, weights=weights, pretrained=pretrained)
    assembly.method.load(assembly.model, output / MODEL_FOLDER)
    return assembly.model.eval()


def check_against_model(plan: Plan) -> Assembly:
    """Hold a plan against the model it names; return that model on ``meta``.

    Raises:
        InputError: no such model or method here, the method refuses the model, parameter counts
            have changed, or the placement names units that the model lacks.
    """
    workload = plan.candidate.workload
    try:
        assembly = assemble(workload, device="meta")
    except UsageError as error:
        raise InputError(f"the plan does not fit this installation: {error}") from error
    from profiler.predict import count_parameters

    counted, planned = count_parameters(workload), plan.prediction.parameters
    if counted != planned:
        raise InputError(
            f"the plan's model has changed: {workload.model} with {workload.method} has "
            f"{counted.total} parameters ({counted.trainable} trainable) here, "
            f"the plan says {planned.total} ({planned.trainable}); make a new plan"
        )
    apply_placement(assembly.model, plan.candidate.placement, units=assembly.units).remove()
    return assembly


def data_for(workload: Workload, spec: str, *, backbone: nn.Module | None = None) -> ImageData:
    """Load data as a workload's model wants it.

    Args:
        workload: gives image size and classes.
        spec: ``digits``, ``cifar100``, ``dtd`` or a folder.
        backbone: for its normalisation; built without allocating when not given.

    Raises:
        InputError: the data cannot be read, has another number of classes than the workload, or
            fewer images than one step takes.
    """
    if backbone is None:
        backbone = assemble(workload, device="meta").backbone
    mean, std = normalisation(backbone)
    images = load_data(spec, image_size=workload.image_size, mean=mean, std=std)
    check_data(images, workload)
    return images


def check_data(images: ImageData, workload: Workload) -> None:
    """Refuse data that a workload cannot be trained on.

    Raises:
        InputError: another number of classes or image size, or too few images.
    """
    name = images.source.name
    if images.num_classes != workload.num_classes:
        raise InputError(
            f"the plan's classifier has {workload.num_classes} classes, "
            f"{name} has {images.num_classes}; make a plan for this data"
        )
    if images.train.image_size != workload.image_size:
        raise InputError(
            f"the plan is for images of {workload.image_size} px, "
            f"{name} was loaded at {images.train.image_size} px"
        )
    if len(images.train) < workload.effective_batch:
        raise InputError(
            f"one step of the plan takes {workload.effective_batch} images, {name} has "
            f"{len(images.train)} to train on; plan with a smaller batch"
        )


def device_type(device: str) -> str:
    """Return ``cpu`` or ``cuda``.

    Raises:
        DeviceError: CUDA was asked for and is not here.
        UsageError: another device.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"device must be cpu or cuda, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device in this machine; use --device cpu")
    return kind


def choose_learning_rate(
    workload: Workload, assembly: Assembly, *, given: float | None = None
) -> LearningRate:
    """Return the rate to train with.

    The paper's defaults (``profiler.step.default_learning_rate``) are for pretrained weights: at
    1e-5, random weights learn nothing in a few epochs. Its 5e-4 is kept for what changes the
    weights; on digits as above, LoRA got 57 % at it, 42 % at 1e-4 and 16 % at 2e-3.
    """
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise UsageError(f"the learning rate must be a positive number, got {given!r}")
        return LearningRate(value=given, warm_up_steps=0, reason="as given, constant")
    usual, kind = default_learning_rate(workload), assembly.weights.kind
    if kind != "random":
        reason = f"arXiv 2607.02158's for {kind} weights, constant"
        return LearningRate(value=usual, warm_up_steps=0, reason=reason)
    warm_up = f"{WARM_UP_STEPS} steps of warm-up, then constant"
    by_sgd = 10 if workload.optimizer == "sgd" else 1
    if workload.method in BESIDE_THE_WEIGHTS:
        reason = f"for what is added to random weights; {warm_up}"
        return LearningRate(value=ADDED_RATE * by_sgd, warm_up_steps=WARM_UP_STEPS, reason=reason)
    if workload.method != "full":
        reason = f"arXiv 2607.02158's, {warm_up} because the weights are random"
        return LearningRate(value=usual, warm_up_steps=WARM_UP_STEPS, reason=reason)
    rate = _from_scratch_rate(workload, assembly) * by_sgd
    reason = f"for training everything from random weights; {warm_up}"
    return LearningRate(value=rate, warm_up_steps=WARM_UP_STEPS, reason=reason)


def _from_scratch_rate(workload: Workload, assembly: Assembly) -> float:
    """Return AdamW's rate for training everything from random weights."""
    if not any(isinstance(module, torch.nn.LayerNorm) for module in assembly.backbone.modules()):
        return BATCH_NORM_RATE
    return RANDOM_WEIGHTS_RATE * math.sqrt(workload.effective_batch / RANDOM_WEIGHTS_BATCH)


# ---- accuracy ------------------------------------------------------------------------------------


def autocast(precision: str, kind: str) -> AbstractContextManager[None]:
    """Autocast as in training."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(kind, dtype=dtype, enabled=precision != "fp32")


def accuracy(
    model: nn.Module,
    dataset: ImageSet,
    *,
    batch_size: int,
    device: str = "cpu",
    precision: str = "fp32",
) -> float:
    """Return the fraction of images that the model classifies right, in evaluation mode."""
    was_training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.long, device=device)
    batches = loader(dataset, batch_size=batch_size, shuffle=False, seed=0, drop_last=False)
    try:
        with torch.no_grad(), autocast(precision, device_type(device)):
            for images, labels in batches:
                predicted = model(images.to(device)).argmax(dim=1)
                right += (predicted == labels.to(device)).sum()
    finally:
        model.train(was_training)
    return right.item() / len(dataset)


# ---- a model in training -------------------------------------------------------------------------


class _StepImages:
    """The micro-batches of one step, kept on the host until the step is done, for a repetition."""

    def __init__(self, source: Iterator[Batch], *, count: int, device: str) -> None:
        self._source, self._count, self._device = source, count, device
        self._drawn: list[Batch] = []

    def fetches(self) -> list[Callable[[], Batch]]:
        return [partial(self._fetch, index) for index in range(self._count)]

    def _fetch(self, index: int) -> Batch:
        while len(self._drawn) <= index:
            self._drawn.append(next(self._source))
        images, labels = self._drawn[index]
        return images.to(self._device), labels.to(self._device)


class Session:
    """A model in training and everything that changes from step to step.

    Args:
        workload: what to train.
        placement: what to start with.
        assembly: the model, on its device.
        device: where it is.
        rate: the learning rate.
        total_steps: length of the training.
        tighter: placements to step down to, in order; found when not given.
        cost: to be asked for them.
        rule: decides in place of ``placement``, until memory runs out.
        in_use: what the rule looks at.
    """

    def __init__(
        self,
        *,
        workload: Workload,
        placement: Placement,
        assembly: Assembly,
        device: str,
        rate: LearningRate,
        total_steps: int,
        tighter: Iterable[Placement] | None = None,
        cost: CostModel | None = None,
        rule: AdaptiveRule | None = None,
        in_use: Callable[[], int] | None = None,
    ) -> None:
        self.assembly, self.device, self.rate = assembly, device, rate
        self.model = assembly.model
        kind = device_type(device)
        optimizer = make_optimizer(
            self.model,
            workload,
            method=assembly.method,
            foreach=kind == "cuda",
            learning_rate=rate.value,
        )
        assembly.method.on_training_start(self.model, total_steps=total_steps)
        self.step = TrainingStep(
            self.model,
            optimizer,
            workload,
            method=assembly.method,
            device_type=kind,
            mark=self._mark,
        )
        self.step_downs: list[str] = []
        self._asked = placement
        self._phase = ""
        self._cost = cost
        self._tighter = None if tighter is None else iter(tighter)
        if rule is None:
            self._applied = self._apply(placement)
        else:
            self._applied = apply_adaptive(
                self.model,
                budget_bytes=rule.budget_bytes,
                threshold=rule.threshold,
                live_bytes=in_use or memory_in_use(device),
                units=assembly.units,
            )

    @property
    def placement(self) -> Placement:
        """What the model follows; under a rule, what that decided last."""
        return self._applied.placement

    def close(self) -> None:
        """Give the model its own forward back."""
        self._applied.remove()

    def run(self, source: Iterator[Batch]) -> float:
        """Run one step on the next images and return its loss, stepping down if memory runs out."""
        images = _StepImages(source, count=self.step.workload.accumulation, device=self.device)
        self.set_rate()
        states = random_states()
        while True:
            refusal = self._attempt(images)
            if isinstance(refusal, float):
                return refusal
            self._step_down(refusal)
            set_random_states(states)

    def set_rate(self) -> None:
        """Give the optimizer the learning rate of the next step."""
        for group in self.step.optimizer.param_groups:
            group["lr"] = self.rate.at(self.step.global_step)

    def _attempt(self, images: _StepImages) -> float | str:
        """Return the loss, or what the allocator said (the error itself holds activations)."""
        try:
            return float(self.step.run(images.fetches()))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[:160]
            if self._phase == "optimizer":
                raise MeasurementError(
                    f"memory ran out while the optimizer updated ({said}); what it had changed "
                    "cannot be undone; continue with --resume and more memory"
                ) from error
            return said

    def _mark(self, phase: str) -> AbstractContextManager[None]:
        from contextlib import nullcontext

        self._phase = phase
        return nullcontext()

    def _step_down(self, reason: str) -> None:
        before = self.placement
        self._applied.remove()
        self.step.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.step.device_type == "cuda":
            torch.cuda.empty_cache()
        if self._tighter is None:
            self._tighter = self._below(before)
        found = next(self._tighter, None)
        if found is None:
            raise MeasurementError(
                f"memory ran out with placement {before.policy!r}, the tightest there is "
                f"({reason}); make a plan with a smaller micro-batch"
            )
        self._applied = self._apply(found)
        self.step_downs.append(
            f"step {self.step.global_step + 1}: memory ran out under placement "
            f"{before.policy!r}, went on under {self.placement.policy!r} ({reason})"
        )

    def _below(self, placement: Placement) -> Iterator[Placement]:
        candidate = Candidate(workload=self.step.workload, placement=placement)
        return tighter_placements(candidate, self.assembly.units, self._cost)

    def _apply(self, placement: Placement) -> AppliedPlacement:
        return apply_placement(self.model, placement, units=self.assembly.units)

    # -- what a checkpoint holds ---------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything but the learned tensors, as tensors and plain data."""
        scaler = self.step.scaler
        return {
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "method": self.assembly.method.training_state(self.model),
            "random": random_states(),
            "global_step": self.step.global_step,
            "asked_placement": self._asked.to_json(),
            "placement": self.placement.to_json(),
            "step_downs": list(self.step_downs),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.step.optimizer.load_state_dict(state["optimizer"])
        if self.step.scaler is not None:
            self.step.scaler.load_state_dict(state["scaler"])
        self.assembly.method.restore_training_state(self.model, state["method"])
        self.step.global_step = int(state["global_step"])
        self.step_downs = [str(text) for text in state["step_downs"]]
        if Placement.from_json(state["asked_placement"]) == self._asked:
            self._follow(Placement.from_json(state["placement"]))
        # else it is asked for another now, which changes nothing of what is learned
        set_random_states(state["random"])

    def _follow(self, placement: Placement) -> None:
        by_rule = self.placement.policy == placement.policy == "adaptive"
        if placement != self.placement and not by_rule:
            self._applied.remove()
            self._tighter = self._below(placement)
            self._applied = self._apply(placement)


def random_states() -> dict[str, Any]:
    """Return the states of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put torch's generators back."""
    torch.set_rng_state(states["cpu"].cpu())
    if states["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


# ---- checkpoints ---------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Course:
    """How far a training has come, beside what the session knows.

    Attributes:
        epochs: whole ones.
        readings: all.
        seconds: in all.
        steps: done of the epoch under way.
        loss: sum over them.
        epoch_began: when, in these seconds.
    """

    epochs: list[EpochResult] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    loss: float = 0.0
    epoch_began: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(
            epochs=[EpochResult(**epoch) for epoch in data["epochs"]],
            readings=[Reading(**reading) for reading in data["readings"]],
            seconds=float(data["seconds"]),
            steps=int(data["steps"]),
            loss=float(data["loss"]),
            epoch_began=float(data["epoch_began"]),
        )


def latest_checkpoint(output: Path) -> Path | None:
    """Return the folder that a training in ``output`` can go on from."""
    found = [p for p in output.glob("checkpoint-*") if p.name[11:].isdigit() and p.is_dir()]
    return max(found, key=lambda folder: int(folder.name[11:]), default=None)


def _save_checkpoint(
    output: Path, session: Session, course: _Course, identity: Mapping[str, Any]
) -> None:
    """Write beside the place, rename, and only then remove the one before."""
    folder, before = output / f"checkpoint-{session.step.global_step}", latest_checkpoint(output)
    draft = output / f".{folder.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_learned(session.model, draft, method=session.assembly.method.name)
    torch.save(session.state(), draft / "state.pt")
    write_json({"identity": dict(identity), **course.to_json()}, draft / "progress.json")
    shutil.rmtree(folder, ignore_errors=True)  # a resumed training may end where it began
    draft.replace(folder)
    if before is not None and before != folder:
        shutil.rmtree(before)


def _load_checkpoint(folder: Path, session: Session, identity: Mapping[str, Any]) -> _Course:
    """Put a checkpoint into a session and return how far it had come."""
    progress = read_json(folder / "progress.json", kind="checkpoint")
    try:
        saved, course = progress["identity"], _Course.from_json(progress)
        differing = [key for key in identity if saved.get(key) != identity[key]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} is no checkpoint of budgetplan: {error!r}") from error
    if differing:
        key, was, now = _difference(differing[0], saved.get(differing[0]), identity[differing[0]])
        raise InputError(
            f"cannot resume {folder.parent}: {key} was {_short(was)}, "
            f"is now {_short(now)}; train into another folder"
        )
    load_learned(session.model, folder, method=session.assembly.method.name)
    try:
        session.restore(torch.load(folder / "state.pt", map_location="cpu", weights_only=True))
    except Exception as error:  # pickle, zip and optimizers each have their own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{folder / 'state.pt'} cannot be read ({reason})") from error
    return course


def _difference(key: str, was: object, now: object) -> tuple[str, object, object]:
    """Return the innermost key that differs, and its two values."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for inner in [*now, *was]:
            if was.get(inner) != now.get(inner):
                return _difference(f"{key}'s {inner}", was.get(inner), now.get(inner))
    return key, was, now


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- training ------------------------------------------------------------------------------------


def train(
    plan: Plan,
    *,
    data: ImageData | str,
    epochs: int,
    output: Path,
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    device: str = "cpu",
    weights: Path | None = None,
    pretrained: bool = True,
    learning_rate: float | None = None,
    seed: int = 0,
    tighter: Sequence[Placement] | None = None,
    rule: AdaptiveRule | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> TrainResult:
    """Train what a plan says and save the result.

    Args:
        plan: what to train.
        data: loaded images, or what ``planner.data`` loads.
        epochs: in all, those before a resume included.
        output: folder for everything that is written.
        steps: optimizer steps in all, in place of ``epochs``.
        minutes: end after the step under way when this run has taken so long.
        resume: go on from the folder's checkpoint; the placement may be another than before.
        device: ``cpu`` or ``cuda``; on CUDA the allocator is capped at the plan's budget.
        weights: a file of weights.
        pretrained: try timm's hub when no file is given.
        learning_rate: None for ``choose_learning_rate``.
        seed: of new weights, dropout and the order of images.
        tighter: placements to step down to when memory runs out.
        rule: decides what is recomputed, in place of the plan.
        on_progress: called after each step and at each reading.
        on_interrupt: called, in the signal's handler, when a Ctrl-C has to wait for the step.

    Raises:
        InputError: the plan does not fit the model or the data, or there is nothing to resume.
        DeviceError: no such device.
        MeasurementError: memory ran out under the tightest placement, or the loss is not finite.
    """
    for name, given in (("epochs", epochs), ("steps", steps), ("minutes", minutes)):
        if given is not None and not given > 0:
            raise UsageError(f"{name} must be positive, got {given!r}")
    kind = device_type(device)
    shape = check_against_model(plan)
    workload = plan.candidate.workload
    images = data_for(workload, data, backbone=shape.backbone) if isinstance(data, str) else data
    check_data(images, workload)
    checkpoint = _check_output(output, resume=resume)

    torch.manual_seed(seed)
    in_use = None if rule is None else memory_in_use(device)
    assembly = assemble(workload, weights=weights, pretrained=pretrained)
    if kind == "cuda":
        configure(os.environ)
        _cap_to_budget(plan)
    assembly.model.to(device).train()
    rate = choose_learning_rate(workload, assembly, given=learning_rate)
    last_step = steps or epochs * (len(images.train) // workload.effective_batch)
    session = Session(
        workload=workload,
        placement=plan.candidate.placement,
        assembly=assembly,
        device=device,
        rate=rate,
        total_steps=last_step,
        tighter=tighter,
        cost=_cost_model(plan, kind),
        rule=rule,
        in_use=in_use,
    )
    identity = {
        "workload": workload.to_json(),
        "data": images.source.fingerprint,
        "weights": assembly.weights.kind,
        "weights file": str(weights) if weights is not None else None,
        "seed": seed,
        "learning rate": rate.value,
        "adaptive rule": None if rule is None else asdict(rule),
    }
    course = _Course() if checkpoint is None else _load_checkpoint(checkpoint, session, identity)
    write_plan(plan, output / PLAN_FILE)
    _Training(
        session,
        images,
        course,
        last_step=last_step,
        seconds=None if minutes is None else 60 * minutes,
        seed=seed,
        save=partial(_save_checkpoint, output, session, course, identity),
        tell=on_progress if on_progress is not None else _say_nothing,
        interrupt=_Interrupt(on_interrupt),
    ).run()
    session.close()

    result = TrainResult(
        epochs=tuple(course.epochs),
        readings=tuple(course.readings),
        learning_rate=rate,
        weights=assembly.weights,
        data=images.source.to_json(),
        placement=session.placement,
        step_downs=tuple(session.step_downs),
        output=output,
    )
    _save_model(assembly, output / MODEL_FOLDER)
    write_json(result.to_json(), output / HISTORY_FILE)
    return result


class _Interrupt:
    """Remembers that somebody pressed Ctrl-C; the second time it goes through at once."""

    def __init__(self, tell: Callable[[], None] | None = None) -> None:
        self.asked = False
        self._tell = tell

    def __call__(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._tell is not None:
            self._tell()


@contextmanager
def _caught_by(interrupt: _Interrupt) -> Iterator[None]:
    """Catch interrupts, where this is the thread that gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Training:
    """Goes from step to step, with readings and checkpoints in between.

    Args:
        session: the model in training.
        images: to train and to evaluate on.
        course: how far it has come; kept up to date.
        last_step: where it ends.
        seconds: of this run; None for no limit.
        seed: of the order of images.
        save: writes a checkpoint.
        tell: called after each step and at each reading.
        interrupt: what remembers a Ctrl-C.
    """

    def __init__(
        self,
        session: Session,
        images: ImageData,
        course: _Course,
        *,
        last_step: int,
        seconds: float | None,
        seed: int,
        save: Callable[[], None],
        tell: Callable[[TrainProgress], None],
        interrupt: _Interrupt,
    ) -> None:
        self._session, self._images, self._course = session, images, course
        self._last_step, self._limit, self._seed = last_step, seconds, seed
        self._save, self._tell = save, tell
        self._few = images.held_out.sample(INTERIM_IMAGES, seed=seed)
        self._steps = len(images.train) // session.step.workload.effective_batch
        self._before = course.seconds
        self._started = time.perf_counter()
        self._read_at = course.seconds
        self._interrupt = interrupt

    def run(self) -> None:
        """Train to the end, or until the time is up.

        An interrupt lets the step under way come to its end, which is then kept.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        with _caught_by(self._interrupt), settled_heap():
            while not self._is_over:
                self._epoch()
        if self._interrupt.asked:
            if self._course.steps:
                self._save()
            raise KeyboardInterrupt
        seen = self._course.readings
        if not seen or seen[-1].step < self._session.step.global_step:
            self._read(self._images.held_out)
            self._save()

    @property
    def _is_over(self) -> bool:
        if self._interrupt.asked or self._session.step.global_step >= self._last_step:
            return True
        # no step of this run has been taken while the course stands where it stood
        return self._limit is not None and self._course.seconds - self._before >= self._limit

    def _seconds(self) -> float:
        """Return the seconds of the training so far."""
        return self._before + time.perf_counter() - self._started

    def _epoch(self) -> None:
        """Train an epoch, or what is left of it, and evaluate."""
        course, workload = self._course, self._session.step.workload
        batches = iter(
            loader(
                self._images.train,
                batch_size=workload.micro_batch,
                shuffle=True,
                seed=self._seed,
                drop_last=True,
                epoch=len(course.epochs) + 1,
                skip=course.steps * workload.effective_batch,
            )
        )
        while course.steps < self._steps and not self._is_over:
            self._step(batches)
            if course.steps < self._steps and self._seconds() - self._read_at >= INTERIM_SECONDS:
                self._read(self._few)
                self._save()
        if course.steps < self._steps:
            return
        reading = self._read(self._images.held_out)
        course.epochs.append(
            EpochResult(
                epoch=len(course.epochs) + 1,
                loss=reading.loss,
                accuracy=reading.accuracy,
                seconds=reading.seconds - course.epoch_began,
            )
        )
        course.steps, course.loss, course.epoch_began = 0, 0.0, reading.seconds
        self._save()

    def _step(self, batches: Iterator[Batch]) -> None:
        session, course = self._session, self._course
        before = len(session.step_downs)
        loss = session.run(batches)
        course.steps += 1
        course.loss += loss
        course.seconds = self._seconds()
        if not math.isfinite(loss):
            raise MeasurementError(
                f"the loss is {loss} at step {course.steps} of epoch {len(course.epochs) + 1}; "
                "lower --learning-rate or use another precision"
            )
        self._say(message="; ".join(session.step_downs[before:]))

    def _read(self, images: ImageSet) -> Reading:
        """Evaluate on some images."""
        session, course = self._session, self._course
        share = accuracy(
            session.model,
            images,
            batch_size=session.step.workload.micro_batch,
            device=session.device,
            precision=session.step.workload.precision,
        )
        course.seconds = self._read_at = self._seconds()
        reading = Reading(
            step=session.step.global_step,
            seconds=course.seconds,
            loss=course.loss / course.steps,
            accuracy=share,
            images=len(images),
        )
        course.readings.append(reading)
        self._say(reading=reading)
        return reading

    def _say(self, *, reading: Reading | None = None, message: str = "") -> None:
        course, step = self._course, self._session.step.global_step
        done = step / self._last_step
        if self._limit is not None:
            done = max(done, (course.seconds - self._before) / self._limit)
        self._tell(
            TrainProgress(
                epoch=len(course.epochs) + 1,
                epochs=math.ceil(self._last_step / self._steps),
                step=course.steps,
                steps=self._steps,
                done=min(1.0, done),
                loss=course.loss / course.steps,
                reading=reading,
                message=message,
            )
        )


def _check_output(output: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to go on from."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the result")
    checkpoint = latest_checkpoint(output)
    if resume and checkpoint is None:
        raise InputError(f"there is nothing to resume in {output}; leave --resume out")
    if not resume and checkpoint is not None:
        raise InputError(
            f"{output} holds a training already; use --resume to go on, or another folder"
        )
    return checkpoint if resume else None


def _cost_model(plan: Plan, kind: str) -> CostModel | None:
    """Return what to ask for tighter placements: the planned device's cost model, if it is here."""
    from planner.cost import CostModel
    from profiler.store import Store

    planned = plan.prediction.device
    if kind == "cpu":
        return CostModel("cpu", Store.default())
    if planned.kind != "cuda":
        return None
    try:
        return CostModel(planned.name, Store.default())
    except UnknownNameError:  # another machine's GPU, that the table lacks
        return None


def _cap_to_budget(plan: Plan) -> None:
    """Let PyTorch reserve what the budget leaves beside the CUDA context."""
    memory = plan.prediction.memory
    context = (memory.device_bytes or 0) - (memory.reserved_bytes or memory.device_bytes or 0)
    cap_cuda_memory(plan.budget_bytes - context)


def _save_model(assembly: Assembly, folder: Path) -> None:
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    assembly.method.save(assembly.model, draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)


def _say_nothing(progress: TrainProgress) -> None:
    """Nobody listens."""
