"""The files of each export target, held against the libraries that read them."""

from __future__ import annotations

import argparse
import ast
import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
from click.testing import CliRunner
from timm.utils import ParseKwargs
from torch import nn

from planner.cli import cli
from planner.cli.export_command import TARGET_NAMES
from planner.disk.json_files import write_json
from planner.export.settings import hf_arguments, timm_arguments
from planner.export.targets import TARGETS, export_plan
from planner.plan import Plan, write_plan
from planner.recipe import Recipe
from profiler.errors import InputError, UsageError
from profiler.models.build import build_model
from profiler.placement import Decision, Placement
from profiler.workload import LEVERS, Workload
from tests.planner.training.plans import make_plan

RECIPE = Recipe(learning_rate=1e-3, epochs=2, patience_epochs=2, source="for this test")


def plan_of(method: str = "lora", **changes: object) -> Plan:
    workload = Workload(
        model="test_vit", method=method, image_size=160, num_classes=10, micro_batch=4
    )
    plan = make_plan(workload.replace(**changes))
    return replace(plan, recipe=RECIPE, provenance={**plan.provenance, "data": "digits"})


def test_every_target_can_be_named() -> None:
    assert tuple(TARGETS) == TARGET_NAMES


def test_peft_alone_makes_the_plans_adapters(tmp_path: Path) -> None:
    plan = plan_of(rank=3, alpha=5.0, dropout=0.1)
    export_plan(plan, "peft").write(tmp_path)
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    own = timm.create_model("test_vit", num_classes=10, img_size=160)
    adapted = peft.get_peft_model(own, config)
    planned = build_model(plan.candidate.workload).model

    def trained(model: nn.Module) -> dict[str, tuple[int, ...]]:
        return {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}

    assert trained(adapted) == trained(planned)
    assert config.lora_alpha == 5.0
    assert config.lora_dropout == 0.1


def test_what_peft_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="bitfit is not a method of peft"):
        export_plan(plan_of("bitfit"), "peft")


def timm_parser() -> argparse.ArgumentParser:
    """The options of timm's train.py @2aabaef0 that plans use, with their types.

    If the environment variable TIMM_TRAIN_PY names that file of timm's repository, which no package
    contains, the parser is the script's own.
    """
    if "TIMM_TRAIN_PY" in os.environ:
        return parser_of_script(Path(os.environ["TIMM_TRAIN_PY"]))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model", "opt", "sched", "amp-dtype"):
        parser.add_argument(f"--{name}")
    for name in (
        "num-classes", "img-size", "batch-size", "validation-batch-size", "grad-accum-steps",
        "epochs", "warmup-epochs",
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int)
    for name in (
        "lr", "weight-decay", "smoothing", "color-jitter", "decay-rate", "layer-decay",
        "clip-grad", "drop-path", "head-init-scale",
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=float)
    for name in (
        "pretrained", "sched-on-updates", "amp", "grad-checkpointing", "no-aug", "channels-last",
    ):  # fmt: skip
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--torchcompile", nargs="?", const="inductor")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
    return parser


def parser_of_script(path: Path) -> argparse.ArgumentParser:
    """Return the parser that the top level of a script makes, without running the rest of it."""
    starts = "parser", "group", "config_parser", "scripting_group"
    tree = ast.parse(path.read_text())
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign | ast.Expr) and ast.unparse(node).startswith(starts)
    ]
    names: dict[str, Any] = {"argparse": argparse, "utils": timm.utils}
    exec(compile(tree, str(path), "exec"), names)
    parser: argparse.ArgumentParser = names["parser"]
    return parser


def test_timms_arguments_hold_the_plans_values() -> None:
    every_unit = Placement(decisions={f"blocks.{i}": Decision.RECOMPUTE for i in range(6)})
    plan = plan_of("full", precision="fp16", accumulation=2, grad_clip=1.0)
    assert "--grad-checkpointing" not in timm_arguments(plan)
    given = timm_parser().parse_args(timm_arguments(plan))
    assert (given.batch_size, given.grad_accum_steps, given.lr) == (4, 2, 1e-3)
    assert (given.amp, given.amp_dtype, given.clip_grad) == (True, "float16", 1.0)
    assert (given.sched, given.sched_on_updates, given.epochs) == ("cosine", True, 2)
    partly = replace(plan, candidate=replace(plan.candidate, placement=every_unit))
    assert any("placement" in text for text in export_plan(partly, "timm").differences)


def test_timm_reads_every_argument_that_a_plan_can_give() -> None:
    plan = plan_of(
        "full",
        precision="bf16",
        image_size=96,
        grad_clip=0.5,
        drop_path=0.1,
        levers=("channels_last",),
    )
    recipe = replace(
        RECIPE,
        zero_head=True,
        layer_decay=0.75,
        schedule="constant",
        augment=False,
        warm_up_steps=3,
    )
    files = export_plan(replace(plan, recipe=recipe), "timm").files
    given = timm_parser().parse_args(files["timm_arguments.txt"].decode().split())
    assert (given.img_size, given.model_kwargs) == (96, {"img_size": 96})
    assert (given.layer_decay, given.decay_rate, given.head_init_scale) == (0.75, 1.0, 0.0)
    assert (given.sched, given.sched_on_updates, given.no_aug) == ("step", False, True)
    assert (given.amp_dtype, given.channels_last) == ("bfloat16", True)
    assert (given.drop_path, given.clip_grad) == (0.1, 0.5)
    compiled = plan_of("full", levers=("compile",))
    assert timm_parser().parse_args(timm_arguments(compiled)).torchcompile == "inductor"
    assert timm_parser().parse_args(["--grad-checkpointing"]).grad_checkpointing


def test_timm_gets_the_image_size_where_it_matters_and_its_own_backbones_only() -> None:
    def arguments(**changes: object) -> list[str]:
        shown = export_plan(plan_of("full", **changes), "timm").files["timm_arguments.txt"]
        return shown.decode().split()

    assert "--model-kwargs=img_size=96" in arguments(image_size=96)
    assert not any("model-kwargs" in each for each in arguments(image_size=160))
    assert not any("model-kwargs" in each for each in arguments(model="test_resnet", image_size=96))
    with pytest.raises(UsageError, match="timm has no"):
        arguments(model="vim_tiny_patch16_224", image_size=32)


def test_weights_that_cannot_be_loaded_end_a_plan_for_pretrained_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from planner.training.own_loop import load_backbone

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="the plan is for pretrained weights"):
        load_backbone(plan_of())
    assert load_backbone(plan_of(), pretrained=False).weights.kind == "random"


def test_a_plan_without_images_names_the_parameter_of_a_python_caller() -> None:
    import inspect

    import planner

    plan = replace(make_plan(Workload(model="test_vit", num_classes=10)), provenance={})
    with pytest.raises(InputError, match="does not say which images") as caught:
        planner.load_images(plan)
    assert "--data" in str(caught.value)
    named = str(caught.value).rpartition("the parameter ")[2]
    assert named in inspect.signature(planner.load_images).parameters


def test_timm_trains_all_weights_only() -> None:
    with pytest.raises(UsageError, match="the plan's method is lora"):
        timm_arguments(plan_of())


def test_the_trainer_clips_only_if_the_plan_does() -> None:
    assert hf_arguments(plan_of())["max_grad_norm"] == 0.0
    assert hf_arguments(plan_of(grad_clip=0.5))["max_grad_norm"] == 0.5


def test_a_plan_without_a_recipe_is_refused() -> None:
    old = replace(plan_of(), recipe=None)
    for target in ("script", "hf", "lightning", "timm"):
        with pytest.raises((InputError, UsageError), match=r"no recipe|method is lora"):
            export_plan(old, target)


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("script", []),
        ("hf", ["cudnn_benchmark"]),
        ("lightning", ["tf32", "compile"]),
        ("timm", ["fused", "tf32", "cudnn_benchmark"]),
        ("peft", list(LEVERS)),
    ],
)
def test_levers_and_power_limits_that_a_target_leaves_out_are_named(
    target: str, missing: list[str]
) -> None:
    plan = plan_of("full" if target == "timm" else "lora", levers=LEVERS)
    limited = replace(plan, prediction=replace(plan.prediction, power_limit_watts=120.0))
    found = export_plan(limited, target).differences
    named = [text.split()[2] for text in found if text.startswith("the lever")]
    assert named == missing
    assert "nvidia-smi -pl 120" in found[-1]
    plain = export_plan(plan_of("full" if target == "timm" else "lora"), target).differences
    assert not any("lever" in text or "power limit" in text for text in plain)


def test_the_command_writes_a_folder_and_replaces_nothing(tmp_path: Path) -> None:
    write_plan(plan_of(), tmp_path / "plan.json")
    command = ["export", str(tmp_path / "plan.json"), "--to", "hf", "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(cli, [*command, "--json"])
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == sorted(shown["files"])
    assert CliRunner().invoke(cli, command).exit_code == 0  # the same content again
    write_json({"changed": 1}, tmp_path / "x" / "training_arguments.json")
    refused = CliRunner().invoke(cli, command)
    assert refused.exit_code == 4
    assert "exists with other content" in refused.output


@pytest.mark.parametrize("target", ["script", "hf"])
def test_the_written_program_runs_by_itself(tmp_path: Path, target: str) -> None:
    export_plan(plan_of("head", micro_batch=32), target).write(tmp_path)
    length = {"script": ["--epochs", "1"], "hf": ["--steps", "2"]}[target]
    done = subprocess.run(
        [sys.executable, "train.py", "--no-pretrained", *length],
        cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1",
                           "PATH": "", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "images right" in done.stdout


@pytest.mark.parametrize("target", ["script", "hf"])
def test_the_written_program_ends_in_one_line_if_it_cannot_train(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_plan(plan_of("head", micro_batch=32), target).write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--weights", "missing.safetensors"])
    with pytest.raises(SystemExit, match=r"train\.py: .*missing\.safetensors") as ended:
        runpy.run_path("train.py", run_name="__main__")
    assert "\n" not in str(ended.value)
