"""Train exactly what a plan says: same backbone, method, placement, batch, precision, optimizer.

    train                  epochs of steps, held-out accuracy after each, the result saved
    accuracy               share of held-out images classified right (validation uses it too)
    check_against_model    does the plan's model still exist, and is it still the same?
    choose_learning_rate   the paper's for loaded weights, a larger one for random weights

The step is that of ``profiler.step``, so what was predicted and measured is what runs. The rate is
constant, as in the code of arXiv 2607.02158; with random weights it rises linearly over the first
steps. An epoch has whole steps only: the images left over (fewer than a step takes) are others in
every epoch.

*Output*, all in one folder::

    plan.json         the plan
    training.json     accuracy per epoch, learning rate, weights, data, placements used
    model/            what the method learned (peft's own format, or safetensors)
    checkpoint-N/     after epoch N: learned tensors, optimizer, random states; the last one stays

A checkpoint is written beside its place and renamed, so an interruption at any moment leaves a
whole one. A resumed training ends as an uninterrupted one does, bit for bit on a CPU.

*Out of memory.* A step that the allocator refuses in forward or backward is repeated, on the same
images and from the same random state, under a tighter placement of the same model; the training
stays there. Limitations: BatchNorm's running statistics see the images of such a step twice, and
an optimizer that runs out of memory while it updates cannot be repeated and ends the training.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planner.data import ImageData, ImageSet, load_data, loader
from planner.plan import Plan, read_json, versions, write_json, write_plan
from profiler.assembly import Assembly, assemble
from profiler.backbones import WeightSource, normalisation
from profiler.checkpointing import AppliedPlacement, apply_placement
from profiler.errors import DeviceError, InputError, MeasurementError, UsageError
from profiler.methods.learned import load_learned, save_learned
from profiler.placement import RECOMPUTE, SEGMENT, Placement
from profiler.sandbox import cap_cuda_memory, is_out_of_memory
from profiler.step import Batch, TrainingStep, default_learning_rate, make_optimizer
from profiler.workload import Workload

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

SCHEMA = "budgetplan.training/1"
PLAN_FILE, HISTORY_FILE, MODEL_FOLDER = "plan.json", "training.json", "model"
RANDOM_WEIGHTS_RATE = 5e-4
"""AdamW's rate for random weights, whatever the method: DeiT's for a batch of 512 (2012.12877)."""
WARM_UP_STEPS = 10
"""Steps of linear warm-up with random weights."""


# ---- what is reported ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where a training is: after a step, or (with an accuracy) after an epoch.

    Attributes:
        epoch: from 1.
        epochs: in all.
        step: of this epoch, from 1.
        steps: of an epoch.
        loss: mean over this epoch so far.
        accuracy: fraction of held-out images after this epoch; None within it.
        message: what happened, when something did.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """One epoch: mean loss over its steps, held-out accuracy (fraction) and duration."""

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
        epochs: one entry each, those before a resume included.
        learning_rate: with its reason.
        weights: where the backbone's weights came from; belongs beside every accuracy.
        data: the data source as plain data.
        placement: what the model followed at the end.
        step_downs: a sentence for every time memory ran out.
        output: the folder.
    """

    epochs: tuple[EpochResult, ...]
    learning_rate: LearningRate
    weights: WeightSource
    data: Mapping[str, Any]
    placement: Placement
    step_downs: tuple[str, ...]
    output: Path

    @property
    def accuracy(self) -> float:
        """Fraction of held-out images after the last epoch."""
        return self.epochs[-1].accuracy

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as in ``training.json``."""
        return {
            "schema": SCHEMA,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "accuracy": self.accuracy,
            "learning_rate": asdict(self.learning_rate),
            "weights": asdict(self.weights),
            "data": dict(self.data),
            "placement": self.placement.to_json(),
            "step_downs": list(self.step_downs),
            "versions": versions(),
        }


# ---- checks before anything is run ---------------------------------------------------------------


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
    workload: Workload, weights: WeightSource, *, given: float | None = None
) -> LearningRate:
    """Return the rate to train with.

    The paper's defaults (``profiler.step.default_learning_rate``) are for pretrained weights: at
    1e-5, random weights learn nothing in a few epochs.
    """
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise UsageError(f"the learning rate must be a positive number, got {given!r}")
        return LearningRate(value=given, warm_up_steps=0, reason="as given, constant")
    if weights.kind != "random":
        return LearningRate(
            value=default_learning_rate(workload),
            warm_up_steps=0,
            reason=f"arXiv 2607.02158's for {weights.kind} weights, constant",
        )
    factor = 10 if workload.optimizer == "sgd" else 1
    return LearningRate(
        value=max(default_learning_rate(workload), RANDOM_WEIGHTS_RATE * factor),
        warm_up_steps=WARM_UP_STEPS,
        reason=f"larger because the weights are random; {WARM_UP_STEPS} steps of warm-up, "
        "then constant",
    )


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


def tighter_placements(placement: Placement, units: Sequence[str]) -> tuple[Placement, ...]:
    """Return placements that keep ever less: half of the units recomputed, then all of them.

    Recomputing the first units costs what recomputing as many later ones does and has one unit
    less at the peak. What the given placement recomputes already stays recomputed.
    """

    def recompute(some: Sequence[str], policy: str) -> Placement:
        kept = {
            name: decision
            for name, decision in placement.decisions.items()
            if name.partition("/")[0] not in some or decision == SEGMENT
        }
        return Placement(policy=policy, decisions={name: RECOMPUTE for name in some} | kept)

    options = (recompute(units[: (len(units) + 1) // 2], "first-k"), recompute(units, "static"))
    tighter: list[Placement] = []
    for option in options:
        if option.decisions not in [p.decisions for p in (placement, *tighter)]:
            tighter.append(option)
    return tuple(tighter)


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
        tighter: Sequence[Placement] | None = None,
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
        self._phase = ""
        self._tighter = list(
            tighter_placements(placement, assembly.units) if tighter is None else tighter
        )
        self.placement = placement
        self._applied = self._apply(placement)

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
        if not self._tighter:
            raise MeasurementError(
                f"memory ran out with placement {self.placement.policy!r}, the tightest there is "
                f"({reason}); make a plan with a smaller micro-batch"
            )
        self._applied.remove()
        self.step.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.step.device_type == "cuda":
            torch.cuda.empty_cache()
        before, self.placement = self.placement, self._tighter.pop(0)
        self._applied = self._apply(self.placement)
        self.step_downs.append(
            f"step {self.step.global_step + 1}: memory ran out under placement "
            f"{before.policy!r}, went on under {self.placement.policy!r} ({reason})"
        )

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
        placement = Placement.from_json(state["placement"])
        if placement != self.placement:
            self._applied.remove()
            self._tighter = [
                p for p in tighter_placements(placement, self.assembly.units) if p != placement
            ]
            self.placement = placement
            self._applied = self._apply(placement)
        set_random_states(state["random"])


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


def _folder(output: Path, epoch: int) -> Path:
    return output / f"checkpoint-{epoch:04d}"


def _latest(output: Path) -> Path | None:
    found = sorted(p for p in output.glob("checkpoint-*") if p.name[11:].isdigit() and p.is_dir())
    return found[-1] if found else None


def _save_checkpoint(
    output: Path, session: Session, epochs: Sequence[EpochResult], identity: Mapping[str, Any]
) -> None:
    """Write beside the place, rename, and only then remove the one before."""
    folder = _folder(output, epochs[-1].epoch)
    before = _latest(output)
    draft = output / f".{folder.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_learned(session.model, draft, method=session.assembly.method.name)
    torch.save(session.state(), draft / "state.pt")
    write_json(
        {"identity": dict(identity), "epochs": [asdict(e) for e in epochs]},
        draft / "progress.json",
    )
    draft.replace(folder)
    if before is not None and before != folder:
        shutil.rmtree(before)


def _load_checkpoint(
    folder: Path, session: Session, identity: Mapping[str, Any]
) -> list[EpochResult]:
    """Put a checkpoint into a session and return the epochs it had done."""
    progress = read_json(folder / "progress.json", kind="checkpoint")
    try:
        saved, epochs = progress["identity"], [EpochResult(**e) for e in progress["epochs"]]
        differing = [key for key in identity if saved[key] != identity[key]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder} is no checkpoint of budgetplan: {error!r}") from error
    if differing:
        key = differing[0]
        raise InputError(
            f"cannot resume {folder.parent}: {key} was {_short(saved[key])}, "
            f"is now {_short(identity[key])}; train into another folder"
        )
    load_learned(session.model, folder, method=session.assembly.method.name)
    try:
        session.restore(torch.load(folder / "state.pt", map_location="cpu", weights_only=True))
    except Exception as error:  # pickle, zip and optimizers each have their own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{folder / 'state.pt'} cannot be read ({reason})") from error
    return epochs


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
    resume: bool = False,
    device: str = "cpu",
    weights: Path | None = None,
    pretrained: bool = True,
    learning_rate: float | None = None,
    seed: int = 0,
    tighter: Sequence[Placement] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Train what a plan says and save the result.

    Args:
        plan: what to train.
        data: loaded images, or what ``planner.data`` loads.
        epochs: in all, those before a resume included.
        output: folder for everything that is written.
        resume: go on from the folder's checkpoint.
        device: ``cpu`` or ``cuda``; on CUDA the allocator is capped at the plan's budget.
        weights: a file of weights.
        pretrained: try timm's hub when no file is given.
        learning_rate: None for ``choose_learning_rate``.
        seed: of new weights, dropout and the order of images.
        tighter: placements to step down to when memory runs out.
        on_progress: called after each step and each epoch.

    Raises:
        InputError: the plan does not fit the model or the data, or there is nothing to resume.
        DeviceError: no such device.
        MeasurementError: memory ran out under the tightest placement, or the loss is not finite.
    """
    if epochs < 1:
        raise UsageError(f"epochs must be a positive integer, got {epochs!r}")
    kind = device_type(device)
    shape = check_against_model(plan)
    workload = plan.candidate.workload
    images = data_for(workload, data, backbone=shape.backbone) if isinstance(data, str) else data
    check_data(images, workload)
    checkpoint = _check_output(output, resume=resume)

    torch.manual_seed(seed)
    assembly = assemble(workload, weights=weights, pretrained=pretrained)
    if kind == "cuda":
        _cap_to_budget(plan)
    assembly.model.to(device).train()
    rate = choose_learning_rate(workload, assembly.weights, given=learning_rate)
    steps = len(images.train) // workload.effective_batch
    session = Session(
        workload=workload,
        placement=plan.candidate.placement,
        assembly=assembly,
        device=device,
        rate=rate,
        total_steps=epochs * steps,
        tighter=tighter,
    )
    identity = {
        "candidate": plan.candidate.to_json(),
        "data": images.source.fingerprint,
        "weights": assembly.weights.kind,
        "weights file": str(weights) if weights is not None else None,
        "seed": seed,
        "learning rate": rate.value,
    }
    done = [] if checkpoint is None else _load_checkpoint(checkpoint, session, identity)
    write_plan(plan, output / PLAN_FILE)
    tell = on_progress if on_progress is not None else _say_nothing

    for epoch in range(len(done) + 1, epochs + 1):
        at = TrainProgress(epoch=epoch, epochs=epochs, step=0, steps=steps, loss=math.nan)
        done.append(_epoch(session, images, at=at, seed=seed, tell=tell))
        _save_checkpoint(output, session, done, identity)
    session.close()

    result = TrainResult(
        epochs=tuple(done),
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


def _epoch(
    session: Session,
    images: ImageData,
    *,
    at: TrainProgress,
    seed: int,
    tell: Callable[[TrainProgress], None],
) -> EpochResult:
    """Train one epoch and evaluate."""
    workload, started = session.step.workload, time.perf_counter()
    batches = iter(
        loader(
            images.train,
            batch_size=workload.micro_batch,
            shuffle=True,
            seed=seed,
            drop_last=True,
            epoch=at.epoch,
        )
    )
    total = 0.0
    for step in range(1, at.steps + 1):
        before = len(session.step_downs)
        loss = session.run(batches)
        if not math.isfinite(loss):
            raise MeasurementError(
                f"the loss is {loss} at step {step} of epoch {at.epoch}; "
                "lower --learning-rate or use another precision"
            )
        total += loss
        message = "; ".join(session.step_downs[before:])
        tell(replace(at, step=step, loss=total / step, message=message))
    share = accuracy(
        session.model,
        images.held_out,
        batch_size=workload.micro_batch,
        device=session.device,
        precision=workload.precision,
    )
    tell(replace(at, step=at.steps, loss=total / at.steps, accuracy=share))
    return EpochResult(
        epoch=at.epoch,
        loss=total / at.steps,
        accuracy=share,
        seconds=time.perf_counter() - started,
    )


def _check_output(output: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to go on from."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the result")
    checkpoint = _latest(output)
    if resume and checkpoint is None:
        raise InputError(f"there is nothing to resume in {output}; leave --resume out")
    if not resume and checkpoint is not None:
        raise InputError(
            f"{output} holds a training already; use --resume to go on, or another folder"
        )
    return checkpoint if resume else None


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
