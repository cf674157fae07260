"""The command line: parse, call, print. What a command does is in the module it calls.

Exit codes: 0 done, 2 usage, 3 nothing fits the budget, 4 bad input file or data, 5 device not
available, 6 a measurement failed, 130 interrupted.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.cli.options import (
    INTERRUPTED,
    SIZES,
    Checkpoint,
    Commands,
    candidate_of,
    console,
    data_option,
    device_option,
    does_not_fit,
    json_option,
    pretrained_option,
    print_json,
    progress_bar,
    seed_option,
    size_option,
    threshold_option,
    weights_option,
    workload_options,
)
from planner.cost.place_by_policy import BUDGET_FREE, BUDGETED, cost_model, place
from planner.target_device import find_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.plan import Plan
    from planner.recommendation.request import Request
    from planner.training.adaptive_rule import AdaptiveRule
    from planner.training.history import TrainProgress
    from profiler.records import Report
    from profiler.replay.event_log import EventLog
    from profiler.workload import Candidate

EPILOG = (
    "Exit codes: 0 done, 2 usage, 3 nothing fits the budget, 4 bad input, 5 no such device here, "
    "6 a measurement failed, 130 interrupted."
)

FP16_ON_CPU = (
    "runs on the CPU would take too long; --no-validate, or --precisions fp32,fp16, searches it"
)

FP16_TRAINING_ON_CPU = (
    "budgetplan: this plan trains in fp16, made for a GPU; on this CPU a step can take minutes. "
    "To train here, make the plan with `recommend --device cpu`, or --precisions fp32."
)

TRIALS = 200

VALIDATIONS = 3


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="budgetplan")
def cli() -> None:
    """What should I run on a small GPU? Plans the fine-tuning of vision models.

    Sizes: 2GB = 2*10^9 bytes, 2GiB = 2*2^30 bytes, 2048MiB; a plain number is bytes.
    """


# ---- recommend -----------------------------------------------------------------------------------


@cli.command(epilog=SIZES)
@size_option("--vram", required=True, text="The budget, the CUDA context included, e.g. 2GB.")
@click.option("--model", required=True, help="A timm name or an alias of `budgetplan models`.")
@data_option
@device_option
@click.option("--no-validate", is_flag=True, help="Skip the real runs; nothing is measured.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=VALIDATIONS,
    show_default=True,
    help="How many candidates are really run.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of a real run. [default: few]")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=TRIALS,
    show_default=True,
    help="Of the search, those of a continued study included.",
)
@seed_option
@click.option("--study", help="Name of the study; an existing one is continued.")
@click.option("--storage", help="SQLAlchemy URL. [default: sqlite:///studies/NAME.db]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("plans"),
    show_default=True,
    help="Folder of the plan files.",
)
@click.option(
    "--methods",
    default="all",
    show_default=True,
    help="Methods to search, separated by commas; all are those that work on the backbone.",
)
@click.option(
    "--effective-batch",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Images in an optimizer step; micro-batches are its divisors.",
)
@click.option("--precisions", help="Separated by commas. [default: fp32 and what the device has]")
@click.option(
    "--optimizers",
    default="adamw,sgd",
    show_default=True,
    help="Separated by commas; also adamw8bit.",
)
@click.option(
    "--checkpoints",
    default="none,static,optimal",
    show_default=True,
    help="Policies, separated by commas; also adaptive.",
)
@click.option("--image-size", type=click.IntRange(min=1), help="[default: the model's own]")
@click.option("--stop-when-flat", is_flag=True, help="End the search when the front stands still.")
@weights_option
@pretrained_option
@json_option
def recommend(**options: Any) -> None:
    """Answer what to run in a budget: search, check, measure, write plan files."""
    from planner.cli.tables import show_recommendation
    from planner.recommendation.pipeline import recommend as answer

    with progress_bar(silent=options["as_json"]) as notify:
        notify("start", "loading the model's structure", 0.0)
        request = _request(options)
        try:
            result = answer(request, notify=notify)
        except KeyboardInterrupt:
            where = f" --storage {request.storage}" if request.storage else ""
            click.echo(
                f"budgetplan: stopped; the same command with --study {request.study}{where} "
                "goes on",
                err=True,
            )
            raise click.exceptions.Exit(INTERRUPTED) from None
    if options["as_json"]:
        print_json(result.to_json())
    else:
        show_recommendation(result, console())


def _request(options: Mapping[str, Any]) -> Request:
    """Return what the options ask; refuses before anything is computed."""
    from planner.recommendation.request import (
        RealRun,
        Request,
        check_weights,
        classes_of,
        study_name,
    )
    from planner.search.pareto import HypervolumeStagnation
    from planner.search.space import (
        Space,
        divisors,
        method_choice,
        on_backbone,
        parse_methods,
        precisions_for,
        working_methods,
    )
    from profiler.devices.table import device_spec
    from profiler.errors import UsageError
    from profiler.models import backbones
    from profiler.workload import Workload

    target = find_target(options["device"])
    model = backbones.resolve(options["model"])
    image_size = options["image_size"] or backbones.native_image_size(model)
    base = Workload(
        model=model,
        image_size=image_size,
        num_classes=classes_of(options["data"], image_size=image_size),
    )
    if options["weights"] is not None:
        check_weights(base, options["weights"])
    working, refused = working_methods(base, parse_methods(options["methods"]))
    if not working:
        name, reason = next(iter(refused.items()))
        raise UsageError(f"no method is left for {model}: {name}: {reason}")
    spec = device_spec(target.label.name)
    on_cpu = target.runs_on == "cpu" and not options["no_validate"]
    precisions = precisions_for(spec, checked_on_cpu=on_cpu)
    left_out = {p: FP16_ON_CPU for p in precisions_for(spec) if p not in precisions}
    space = Space(
        base=base,
        methods=tuple(on_backbone(method_choice(name), base) for name in working),
        micro_batches=divisors(options["effective_batch"]),
        effective_batch=options["effective_batch"],
        precisions=_listed(options["precisions"]) or precisions,
        optimizers=_listed(options["optimizers"]),
        checkpoints=_listed(options["checkpoints"]),
    )
    return Request(
        space=space,
        budget_bytes=options["vram"],
        device=target.label,
        run=RealRun(
            device=target.runs_on,
            data=options["data"],
            steps=options["steps"],
            seed=options["seed"],
            weights=options["weights"],
            pretrained=options["pretrained"],
        ),
        study=options["study"] or study_name(options["model"], target.label, options["vram"]),
        trials=options["trials"],
        storage=options["storage"],
        validations=0 if options["no_validate"] else options["top"],
        has_weights=_has_weights(model, options),
        stop=HypervolumeStagnation() if options["stop_when_flat"] else None,
        out=options["out"],
        left_out=refused | ({} if options["precisions"] else left_out),
    )


def _has_weights(model: str, options: Mapping[str, Any]) -> bool:
    """Say whether the backbone will have pretrained weights; without a run nothing is asked."""
    from profiler.models import backbones

    if options["weights"] is not None:
        return True
    if not options["pretrained"]:
        return False
    return bool(options["no_validate"]) or backbones.can_load_pretrained(model)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


# ---- one workload --------------------------------------------------------------------------------


flops_option = click.option(
    "--flops",
    type=click.Choice(["correct", "as-published"]),
    default="correct",
    show_default=True,
    help="as-published counts as arXiv 2507.23536 did: groups left out of weight gradients.",
)


@cli.command(epilog=SIZES)
@workload_options
@click.option(
    "--rung",
    type=click.Choice(["composed", "replayed"]),
    default="replayed",
    show_default=True,
    help="How far to check: composed is faster, replayed exact.",
)
@flops_option
def predict(rung: str, flops: str, **options: Any) -> None:
    """Predict memory, time and energy of one training step; nothing is run.

    With --vram the exit code is 3 when it does not fit.
    """
    from planner.cli.tables import show_report

    target = find_target(options["device"])
    with progress_bar(silent=options["as_json"]) as notify:
        notify("predict", "building the workload", 0.0)
        candidate = candidate_of(options, device=target.label.name)
        notify("predict", "replaying" if rung == "replayed" else "profiling", 0.3)
        report = _predicted(candidate, target.label.name, rung, as_published=flops != "correct")
        report = replace(report, device=target.label)
    if options["as_json"]:
        print_json(report.to_json())
    else:
        show_report(report, console(), budget_bytes=options["vram"])
    if options["vram"] is not None:
        _hold_against(report, options)


def _predicted(candidate: Candidate, device: str, rung: str, *, as_published: bool) -> Report:
    from profiler.errors import UsageError

    if rung == "composed":
        if as_published:
            raise UsageError("--flops as-published is counted by a replay; use --rung replayed")
        return cost_model(device).predict(candidate)
    from profiler.prediction.report import predict as replay

    return replay(candidate, device=device, as_published=as_published)


def _hold_against(report: Report, options: Mapping[str, Any]) -> None:
    from planner.cost.place_within_budget import needed_bytes, round_up
    from planner.recommendation.infeasible import change_that_fits

    need = needed_bytes(report)
    if need > options["vram"]:
        cost = cost_model(report.device.name)
        raise does_not_fit(
            round_up(need),
            budget_bytes=options["vram"],
            advice=change_that_fits(
                report.candidate, cost, device=report.device.name, budget_bytes=options["vram"]
            ),
        )


@cli.command(epilog=SIZES)
@workload_options
@click.option(
    "--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Timed steps."
)
@click.option(
    "--warmup",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Steps before anything is read.",
)
def measure(steps: int, warmup: int, **options: Any) -> None:
    """Really run one workload in a process of its own; --vram is its hard memory cap."""
    from planner.cli.tables import show_report
    from profiler.running.measurement import measure as run

    target = find_target(options["device"])
    device = _runs_here(options["device"], target.label.name, target.runs_on)
    with progress_bar(silent=options["as_json"]) as notify:
        notify("measure", "building the workload", 0.0)
        candidate = candidate_of(options, device=device)
        report = run(
            candidate,
            device=device,
            cap_bytes=options["vram"],
            steps=steps,
            warmup=warmup,
            on_progress=lambda text, done: notify("measure", text, done),
        )
    if options["device"] == "auto" and device == "cpu":
        note = "no GPU was found here, so it was run on the CPU"
        report = replace(report, device=replace(report.device, note=note))
    if options["as_json"]:
        print_json(report.to_json())
    else:
        show_report(report, console(), budget_bytes=options["vram"])


def _runs_here(asked: str, name: str, runs_on: str) -> str:
    """Return where a real run takes place; a GPU that was named must be here."""
    from profiler.errors import DeviceError

    if asked == "auto" or runs_on == name:
        return runs_on
    raise DeviceError(f"{name} is not in this machine; use --device cpu, or predict for it")


@cli.command(epilog=SIZES)
@workload_options
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw live bytes over the step to this .png or .html file.",
)
@click.option("--placement", is_flag=True, help="Say of each unit what is kept, and why.")
@flops_option
def profile(plot: Path | None, placement: bool, flops: str, **options: Any) -> None:
    """Show one workload unit by unit: stored and boundary bytes, FLOPs, time."""
    from planner.cli.tables import show_profile
    from profiler.devices.table import device_spec
    from profiler.prediction.report import replay_on, report_of
    from profiler.prediction.save_timeline import check_suffix

    if plot is not None:
        check_suffix(plot)
    target = find_target(options["device"])
    with progress_bar(silent=options["as_json"]) as notify:
        notify("profile", "building the workload", 0.0)
        candidate = candidate_of(options, device=target.label.name)
        notify("profile", "replaying one step", 0.3)
        log = replay_on(candidate, device=target.label.name, as_published=flops != "correct")
        report = report_of(candidate, log, spec=device_spec(target.label.name))
        if plot is not None:
            notify("profile", f"drawing {plot}", 0.9)
            _draw(log, plot, candidate, target.label.name)
        rows = None
        if placement:
            notify("profile", "profiling what each unit may do", 0.95)
            rows = cost_model(target.label.name).explain(candidate)
    report = replace(report, device=target.label)
    if options["as_json"]:
        why = {} if rows is None else {"placement_rows": [asdict(row) for row in rows]}
        print_json(report.to_json() | why)
        return
    show_profile(report, console(), placement_rows=rows)


def _draw(log: EventLog, path: Path, candidate: Candidate, device: str) -> None:
    """Draw a replayed step; on CUDA in the allocator's blocks."""
    from profiler.devices.table import device_spec, workspaces_of
    from profiler.prediction.allocator_steps import BLOCK_BYTES
    from profiler.prediction.save_timeline import save_timeline
    from profiler.units import format_bytes

    load, spec, caption = candidate.workload, device_spec(device), ""
    if spec.is_cuda:
        log = log.rounded(BLOCK_BYTES)
        caption = f"Without {format_bytes(sum(workspaces_of(spec)))} of cuBLAS' workspaces."
    rank = "" if load.rank is None else f" rank {load.rank}"
    title = (
        f"{load.model}, {load.method}{rank}, batch {load.micro_batch}, {load.precision},"
        f" checkpointing {candidate.policy.display_name}, {device}"
    )
    save_timeline(log, path, title=title, caption=caption)


# ---- plans ---------------------------------------------------------------------------------------

plan_argument = click.argument("plan", type=click.Path(path_type=Path))


@cli.command()
@plan_argument
@json_option
def show(plan: Path, as_json: bool) -> None:
    """Print a plan file."""
    from planner.cli.tables import show_plan
    from planner.plan import read_plan

    content = read_plan(plan)
    if as_json:
        print_json(content.to_json())
    else:
        show_plan(content, console())


@cli.command()
@plan_argument
@click.option("--data", help="[default: the plan's]")
@device_option
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the run. [default: few]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the plan with its measurement to this file.",
)
@seed_option
@weights_option
@pretrained_option
@json_option
def validate(plan: Path, **options: Any) -> None:
    """Really run a plan for a few steps under its budget, and hold it against its prediction."""
    from planner.cli.tables import show_plan
    from planner.plan import read_plan, write_plan
    from planner.recommendation.pipeline import validate_plan
    from planner.recommendation.request import RealRun

    content = read_plan(plan)
    target = find_target(content.prediction.device.name)
    if options["device"] != "auto":
        asked = find_target(options["device"])
        runs_on = _runs_here(options["device"], asked.label.name, asked.runs_on)
    else:
        runs_on = target.runs_on
    with progress_bar(silent=options["as_json"]) as notify:
        run = RealRun(
            device=runs_on,
            data=options["data"] or str(content.provenance.get("data", "digits")),
            steps=options["steps"],
            seed=options["seed"],
            weights=options["weights"],
            pretrained=options["pretrained"],
        )
        checked = validate_plan(content, run=run, notify=notify)
    if options["out"] is not None:
        write_plan(checked, options["out"])
    if options["as_json"]:
        print_json(checked.to_json())
    else:
        show_plan(checked, console())


@cli.command()
@plan_argument
@click.option("--data", help="digits, cifar100, dtd or a folder. [default: the plan's]")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True)
@click.option(
    "--steps", type=click.IntRange(min=1), help="Optimizer steps in all, in place of --epochs."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="End after the step under way when this run has taken so long; --resume goes on.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the last checkpoint in --out; the placement may be another than before.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the result. [default: trained/ and the plan's name]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train; auto takes a GPU if there is one.",
)
@click.option("--learning-rate", type=float, help="[default: by method and weights]")
@click.option(
    "--checkpoint",
    type=Checkpoint(),
    help="Recompute by this policy and not as the plan says; adaptive decides while training. "
    f"One of {', '.join((*BUDGET_FREE, *BUDGETED))}.",
)
@size_option("--vram", text="The budget of --checkpoint. [default: the plan's]")
@threshold_option
@seed_option
@weights_option
@pretrained_option
@json_option
def train(plan: Path, **options: Any) -> None:
    """Train exactly what a plan says and save what was learned."""
    from planner.plan import read_plan

    content, rule = _placed_otherwise(read_plan(plan), options)
    output = options["out"] or Path("trained") / plan.stem
    data = options["data"] or str(content.provenance.get("data", "digits"))
    device = _training_device(options["device"])
    if device == "cpu" and content.candidate.workload.precision == "fp16":
        click.echo(FP16_TRAINING_ON_CPU, err=True)
    with progress_bar(silent=options["as_json"]) as notify:
        notify("train", "building the model", 0.0)
        from planner.training.checkpoints import latest_checkpoint
        from planner.training.loop import train as run

        try:
            result = run(
                content,
                data=data,
                epochs=options["epochs"],
                steps=options["steps"],
                minutes=options["minutes"],
                output=output,
                resume=options["resume"],
                device=device,
                weights=options["weights"],
                pretrained=options["pretrained"],
                learning_rate=options["learning_rate"],
                seed=options["seed"],
                rule=rule,
                on_progress=lambda step: _tell(step, notify, quiet=options["as_json"]),
                on_interrupt=_say_that_it_stops,
            )
        except KeyboardInterrupt:
            goes_on = "the same command with --resume goes on"
            if latest_checkpoint(output) is None:
                goes_on = "it was too early for a checkpoint: nothing is kept"
            click.echo(f"budgetplan: stopped; {goes_on}", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
    if options["as_json"]:
        print_json(result.to_json() | {"output": str(output)})
        return
    weights = f"{result.weights.kind} weights"
    click.echo(f"{100 * result.accuracy:.2f} % of held-out {data} images right, {weights}")
    click.echo(f"saved in {output}/")


def _placed_otherwise(plan: Plan, options: Mapping[str, Any]) -> tuple[Plan, AdaptiveRule | None]:
    """Return the plan with the placement asked for, or the rule that places in its stead."""
    from planner.plan import with_placement
    from planner.training.adaptive_rule import AdaptiveRule
    from profiler.errors import UsageError
    from profiler.prediction.report import predict as replay

    policy, budget = options["checkpoint"], options["vram"] or plan.budget_bytes
    if policy is None:
        if options["vram"] is not None:
            raise UsageError("--vram is the budget of --checkpoint; give a policy too")
        return plan, None
    if policy == "adaptive":
        return plan, AdaptiveRule(budget_bytes=budget, threshold=options["threshold"])
    device = plan.prediction.device.name
    load = plan.candidate.workload
    candidate = place(load, policy, device=device, budget=budget)
    report = replay(candidate, device=device)
    return with_placement(plan, report, budget_bytes=budget), None


def _training_device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _say_that_it_stops() -> None:
    """Write around Python's buffers, which the signal may have come in the middle of."""
    line = "\nbudgetplan: stopping after this step; Ctrl-C again stops at once\n"
    os.write(2, line.encode())


def _tell(at: TrainProgress, notify: Any, *, quiet: bool) -> None:
    """Show a step on the bar and print a reading on a line of its own."""
    notify("train", f"epoch {at.epoch} of {at.epochs}, loss {at.loss:.3f}", at.done)
    if at.message:
        click.echo(at.message, err=True)
    if at.reading is not None:
        seen = at.reading
        line = (
            f"{seen.seconds / 60:.1f} min, step {seen.step} ({at.step} of {at.steps} in epoch "
            f"{at.epoch}): loss {seen.loss:.3f}, {100 * seen.accuracy:.1f} % of {seen.images} "
            "held-out images right"
        )
        click.echo(line, err=quiet)


# ---- scores --------------------------------------------------------------------------------------


@cli.command()
@click.option("--accuracy", type=float, required=True, help="Top-1, in percent.")
@click.option("--parameters", type=float, help="Of the model.")
@click.option("--macs", type=float, help="Multiply-accumulates of one inference.")
@click.option("--flops", type=float, help="Floating-point operations of one inference.")
@click.option("--inference-seconds", type=float, help="For the whole test set.")
@click.option("--inference-watts", type=float, help="Average over that time.")
@click.option("--inference-peak-mib", type=float, help="Peak memory of inference, MiB.")
@click.option("--energy-joules", type=float, help="Of the whole run.")
@json_option
def score(accuracy: float, as_json: bool, **numbers: float | None) -> None:
    """Compute NetScore, its variants, SAM and PPT from numbers."""
    from planner.cli.tables import score_columns, show_table
    from planner.scoring.netscore import scores

    result = scores(accuracy_percent=accuracy, **numbers)
    if as_json:
        print_json(result.to_json())
    elif all(value is None for value in result.to_json().values()):
        raise click.UsageError(
            "an accuracy alone gives no score: NetScore needs --parameters and --macs, NS-M"
            " --inference-seconds, --inference-watts and --inference-peak-mib, SAM --energy-joules"
        )
    else:
        show_table(score_columns(result), console())


# ---- lists ---------------------------------------------------------------------------------------


@cli.command()
@click.argument("pattern", default="")
@json_option
def models(pattern: str, as_json: bool) -> None:
    """List backbones whose name contains PATTERN; without one, the aliases."""
    from planner.cli.tables import show_table
    from profiler.models.backbones import ALIASES, model_names

    aliases = {a: m for a, m in sorted(ALIASES.items()) if pattern in a or pattern in m}
    if as_json:
        names = model_names(pattern)
        print_json({"schema": "budgetplan.models/1", "models": names, "aliases": aliases})
        return
    if pattern:
        names = model_names(pattern)
        if not names:
            raise click.UsageError(f"no backbone's name contains {pattern!r}")
        for name in names:
            click.echo(name)
        return
    show_table(_pairs("alias", "model", list(aliases.items())), console())
    click.echo(f"\n  and {len(model_names())} names; `budgetplan models PATTERN` lists them")


def _pairs(first: str, second: str, rows: Sequence[tuple[str, str]]) -> list[Any]:
    from planner.cli.tables import Column

    return [
        Column(header=first, cells=[a for a, _ in rows], justify="left"),
        Column(header=second, cells=[b for _, b in rows], justify="left"),
    ]


@cli.command()
@click.argument("name", required=False)
@click.option("--model", help="Say of each method whether it works on this backbone.")
@click.option("--matrix", is_flag=True, help="Every method on every backbone it was tried on.")
@json_option
def methods(name: str | None, model: str | None, matrix: bool, as_json: bool) -> None:
    """List the fine-tuning methods, or say what the one called NAME does."""
    from profiler.errors import UsageError

    if matrix and (name or model):
        raise UsageError("--matrix shows every method and backbone; leave NAME and --model out")
    if matrix:
        _show_matrix(as_json=as_json)
    elif name is not None:
        _show_method(name, model, as_json=as_json)
    else:
        _list_methods(model, as_json=as_json)


def _show_matrix(*, as_json: bool) -> None:
    from planner.cli.tables import show_matrix
    from planner.methods.matrix import load_matrix

    known = load_matrix()
    if as_json:
        print_json(known.to_json())
    else:
        show_matrix(known, console())


def _show_method(name: str, model: str | None, *, as_json: bool) -> None:
    from planner.cli.tables import show_method
    from planner.methods.describe import method_facts

    facts = method_facts(name, model=model)
    if as_json:
        print_json(facts.to_json())
    else:
        show_method(facts, console())


def _list_methods(model: str | None, *, as_json: bool) -> None:
    from planner.cli.tables import method_columns, show_table
    from profiler.models.methods import method_infos

    infos = method_infos()
    refused = {} if model is None else _refused(model, [info.name for info in infos])
    if as_json:
        rows = [asdict(info) | {"refused": refused.get(info.name)} for info in infos]
        print_json({"schema": "budgetplan.methods/1", "methods": rows})
    else:
        show_table(method_columns(infos, refused), console())


def _refused(model: str, names: list[str]) -> dict[str, str]:
    from planner.search.space import working_methods
    from profiler.models import backbones
    from profiler.workload import Workload

    canonical = backbones.resolve(model)
    size = backbones.native_image_size(canonical)
    return working_methods(Workload(model=canonical, image_size=size), names)[1]


@cli.command()
@json_option
def devices(as_json: bool) -> None:
    """List the devices one can plan for, and the GPU of this machine."""
    from planner.cli.tables import device_columns, show_table
    from profiler.devices.nvml import detect_gpu
    from profiler.devices.table import DEVICES

    gpu = detect_gpu()
    here = None if gpu is None else gpu.spec.name
    if as_json:
        rows = [asdict(spec) for spec in DEVICES.values()]
        print_json({"schema": "budgetplan.devices/1", "devices": rows, "here": here})
    else:
        show_table(device_columns(tuple(DEVICES.values()), here=here), console())


# ---- dashboard -----------------------------------------------------------------------------------


@cli.command()
@click.option("--storage", help="SQLAlchemy URL. [default: the newest file in studies/]")
@click.option("--host", default="localhost", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@json_option
def dashboard(storage: str | None, host: str, port: int, as_json: bool) -> None:
    """Show studies in a browser (optuna-dashboard)."""
    from planner.search.dashboard import serve_dashboard
    from planner.search.storage import newest_storage

    url = storage or newest_storage()
    address = f"http://{host}:{port}/"

    def announce() -> None:
        if as_json:
            print_json({"schema": "budgetplan.dashboard/1", "storage": url, "address": address})
        else:
            click.echo(f"{url} at {address} (Ctrl-C ends it)")

    serve_dashboard(url, host=host, port=port, on_ready=announce)


def main() -> None:
    """Run the command line."""
    cli(prog_name="budgetplan")


if __name__ == "__main__":
    main()
