"""The command line: exit codes, one line on errors, one JSON object on stdout."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from planner import api
from planner.cli import cli
from planner.cli.help_sections import COMMAND_SECTIONS, RECOMMEND_SECTIONS
from planner.cli.options import Checkpoint, PercentNumber, Size
from planner.plan import read_plan
from planner.recommendation.build_request import build_request
from profiler.records import OWNERS

RUNS_IN_PROCESS = True

SERVERS = {"serve", "mcp"}  # they answer in JSON alone
SMALL = ("--model", "test_vit", "--image-size", "32", "--num-classes", "10", "--batch-size", "2")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(_root()))  # real runs are processes of their own
    monkeypatch.delenv("BUDGETPLAN_DEBUG", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="budgetplan")


def answer(*arguments: str) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def refused(code: int, *arguments: str) -> str:
    """Return the one line of a refusal; nothing may be on stdout."""
    result = call(*arguments)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("budgetplan: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


# ---- required options ----------------------------------------------------------------------------


def required_parameters() -> list[tuple[str, str]]:
    return [
        (name, parameter.name or "")
        for name, command in cli.commands.items()
        for parameter in command.params
        if parameter.required
    ]


@pytest.mark.parametrize(("name", "parameter"), required_parameters())
def test_what_is_required_is_asked_for(name: str, parameter: str) -> None:
    command = cli.commands[name]
    found = next(each for each in command.params if each.name == parameter)
    with click.Context(command) as context, pytest.raises(click.MissingParameter):
        found.handle_parse_result(context, {}, [])


def test_a_forgotten_budget_is_asked_for() -> None:
    result = call("recommend", "--model", "test_vit")
    assert result.exit_code == 2
    assert "missing option '--vram'" in result.stderr


@pytest.mark.parametrize("given", ["90", "90%", " 90 % "])
def test_an_accuracy_may_be_written_with_its_percent_sign(given: str) -> None:
    assert PercentNumber().convert(given, None, None) == 90.0


@pytest.mark.parametrize("given", ["0", "-1%", "101", "nan", "much"])
def test_an_accuracy_is_above_0_and_at_most_100(given: str) -> None:
    with pytest.raises(click.BadParameter, match="90 or 90%"):
        PercentNumber().convert(given, None, None)


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert ("--json" in result.stdout) == (command not in SERVERS)


def test_sizes_and_exit_codes_are_in_the_help() -> None:
    text = call("--help").stdout
    assert "2GB = 2*10^9 bytes" in text
    assert "3 nothing fits the budget" in text


def test_every_command_stands_in_one_section_with_a_whole_sentence() -> None:
    assert sorted(itertools.chain(*COMMAND_SECTIONS.values())) == sorted(cli.commands)
    entries = re.findall(r"^  ([a-z][a-z-]*) +([A-Z].*)$", call("--help").stdout, re.MULTILINE)
    assert sorted(name for name, _ in entries) == sorted(cli.commands)
    assert [name for name, sentence in entries if not re.search(r"[^.]\.$", sentence)] == []


def test_every_option_of_recommend_stands_in_one_section() -> None:
    named = [param.name for param in cli.commands["recommend"].params]
    assert sorted(itertools.chain(*RECOMMEND_SECTIONS.values())) == sorted(map(str, named))
    text = call("recommend", "--help").stdout
    for option in (o for param in cli.commands["recommend"].params for o in param.opts):
        assert len(re.findall(rf"^  (?:-\w, )?{option}\b(?!-)", text, re.MULTILINE)) == 1, option


HEAVY = "torch", "timm", "peft", "optuna", "rich", "numpy", "scipy", "sklearn"


def loaded_by(*arguments: str) -> set[str]:
    """Return the heavy packages that a command imports, in a process of its own."""
    script = (
        "import sys; from planner.cli import cli\n"
        f"try: cli({list(arguments)!r}, prog_name='budgetplan')\n"
        "except SystemExit: pass\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=_root()
    )
    assert run.stdout
    return set(run.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("recommend", "--help"), ("train", "--help")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert loaded_by(*arguments) == set()


def test_show_reads_a_plan_without_torch() -> None:
    plan = _root() / "studies/prediction_snapshot/plan.json"
    assert loaded_by("show", str(plan)) <= {"rich", "numpy"}


def _root() -> Path:
    return Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("command", "own", "other"),
    [
        ("recommend", {"html", "notes", "verbose", "no_validate", "top"}, {"validations"}),
        ("train", set(), {"on_interrupt"}),
    ],
)
def test_options_are_arguments_of_the_python_function(
    command: str, own: set[str], other: set[str]
) -> None:
    options = {each.name for each in cli.commands[command].params if each.expose_value}
    arguments = set(inspect.signature(getattr(api, command)).parameters)
    assert options - own - {"as_json", "progress"} == arguments - other - {"on_progress"}


@pytest.mark.parametrize(
    ("command", "required", "written_otherwise"),
    [
        ("recommend", ["--model", "vit_s", "--vram", "2GB"], {"methods": ("all",), "weights": ()}),
        ("train", ["plan.json"], {}),
    ],
)
def test_options_have_the_defaults_of_the_python_function(
    command: str, required: list[str], written_otherwise: dict[str, Any]
) -> None:
    given = cli.commands[command].make_context(command, required).params
    arguments = inspect.signature(getattr(api, command)).parameters
    expected = {
        name: written_otherwise.get(name, argument.default)
        for name, argument in arguments.items()
        if name in given and argument.default is not inspect.Parameter.empty
    }
    found = {name: given[name] for name in expected}
    found |= {name: str(value) for name, value in found.items() if isinstance(value, Path)}
    assert found == expected


def test_a_request_has_the_defaults_of_the_python_function() -> None:
    inner = inspect.signature(build_request).parameters
    outer = inspect.signature(api.recommend).parameters
    shared = inner.keys() & outer.keys() - {"out"}
    assert len(shared) > 20
    assert {n: inner[n].default for n in shared} == {n: outer[n].default for n in shared}


# ---- usage ---------------------------------------------------------------------------------------


def usage(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize("listed", ["models", "devices"])
def test_a_pattern_without_a_match_is_an_error_in_json_too(listed: str) -> None:
    assert "'zzz'" in usage(listed, "zzz")
    result = call(listed, "zzz", "--json")
    assert result.exit_code == 2
    assert "zzz" in json.loads(result.stdout)["message"]


@pytest.mark.parametrize("option", ["--devices", "--models", "--methods", "--checkpoints"])
def test_a_grid_without_cells_is_refused(option: str) -> None:
    given = {
        "--devices": "cpu",
        "--models": "test_vit",
        "--methods": "head",
        "--checkpoints": "none",
    }
    words = [word for pair in (given | {option: ","}).items() for word in pair]
    assert "at least one" in usage("grid", "--vram", "2GB", *words)


def test_an_unknown_command_has_near_names() -> None:
    assert "did you mean recommend" in usage("recomend")


def test_an_unknown_model_has_near_names() -> None:
    assert "vit_small_patch16_224" in refused(
        2, "predict", "--model", "vit_smal_patch16_224", "--method", "full", "--batch-size", "1"
    )


def test_the_beginning_of_a_name_is_near_it() -> None:
    line = refused(2, "predict", "--model", "vit_smal", "--method", "full", "--batch-size", "1")
    assert "did you mean vit_small_" in line


def test_an_unknown_method_has_near_names() -> None:
    assert "did you mean lora" in refused(2, "predict", *SMALL, "--method", "lorra")


def test_an_unknown_device_has_near_names() -> None:
    line = refused(2, "predict", *SMALL, "--method", "full", "--device", "rtx-2060-supr")
    assert "did you mean rtx-2060-super" in line


@pytest.mark.parametrize("size", ["2XB", "-2GB", "0", "", "two", "2 G B"])
def test_sizes_of_no_sense(size: str) -> None:
    text = usage("recommend", "--vram", size, "--model", "vit_s")
    assert "write it as 2GB, 2GiB or 2048MiB" in text


def test_sizes() -> None:
    assert Size().convert("2GB", None, None) == 2 * 10**9
    assert Size().convert("2GiB", None, None) == 2 << 30
    assert Size().convert("2048MiB", None, None) == 2 << 30


def test_policies_as_written() -> None:
    for policy in ("none", "static", "cheap", "chen", "every-2", "adaptive", "optimal"):
        assert Checkpoint().convert(policy, None, None) == policy
    assert "unknown checkpoint policy 'sometimes'" in usage(
        "predict", *SMALL, "--method", "full", "--checkpoint", "sometimes"
    )


@pytest.mark.parametrize("policy", ["optimal", "adaptive"])
def test_a_policy_with_a_budget_needs_one(policy: str) -> None:
    line = refused(2, "predict", *SMALL, "--method", "full", "--checkpoint", policy)
    assert f"checkpoint policy {policy} needs a memory budget; give it with --vram" in line


def test_a_rank_for_a_method_without_one() -> None:
    assert "has no rank" in refused(2, "predict", *SMALL, "--method", "full", "--rank", "4")


def test_a_method_that_refuses_the_backbone() -> None:
    assert "no BatchNorm" in refused(2, "predict", *SMALL, "--method", "bn_head")


# ---- predict, profile, measure -------------------------------------------------------------------


def test_predict_prints_the_contract() -> None:
    data = answer("predict", *SMALL, "--method", "full", "--accumulate", "2")
    assert data["schema"] == "budgetplan.prediction/1"
    assert data["rung"] == "replayed"
    assert data["workload"]["accumulation"] == 2
    assert data["device"]["name"] == "rtx-2060-super" or data["device"]["note"]
    memory = data["memory"]
    assert set(memory["at_peak"]) == set(memory["max_by_group"]) == set(OWNERS)
    assert sum(memory["at_peak"].values()) == memory["peak_bytes"]
    assert memory["peak_bytes"] <= memory["reserved_bytes"] < memory["device_bytes"]
    assert set(data["flops"]) == {"forward", "backward", "recompute", "optimizer"}
    assert data["parameters"]["total"] == data["parameters"]["trainable"] > 0
    for unit in data["units"]:
        assert {"name", "stored_bytes", "boundary_bytes", "forward_flops", "decision"} <= set(unit)


def test_for_the_cpu_nothing_is_reserved_and_no_energy_is_known() -> None:
    data = answer("predict", *SMALL, "--method", "head", "--device", "cpu")
    assert data["memory"]["reserved_bytes"] is None
    assert data["energy_joules"] is None
    assert data["device"]["name"] == "cpu"


@pytest.mark.parametrize("policy", ["static", "cheap", "every-2", "first-1", "last-2", "chen"])
def test_checkpointing_lowers_what_is_kept(policy: str) -> None:
    data = answer("predict", *SMALL, "--method", "full", "--checkpoint", policy)
    assert data["placement"]["decisions"]
    assert data["flops"]["recompute"] > 0 or policy == "cheap"
    decided = [unit for unit in data["units"] if unit["decision"] != "keep"]
    assert len(decided) == len(data["placement"]["decisions"])


def test_predict_exits_3_when_it_does_not_fit_and_still_prints() -> None:
    result = call("predict", *SMALL, "--method", "full", "--vram", "1MiB", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["memory"]["device_bytes"] > 1 << 20
    assert "the smallest budget that would is" in result.stderr


def test_composed_is_labelled_so() -> None:
    data = answer("predict", *SMALL, "--method", "head", "--rung", "composed")
    assert data["rung"] == "composed"


def test_optimal_fits_the_budget_it_is_given() -> None:
    many = (*SMALL[:-1], "64", "--method", "full", "--device", "cpu")
    plain = answer("predict", *many)
    static = answer("predict", *many, "--checkpoint", "static")
    peaks = plain["memory"]["peak_bytes"], static["memory"]["peak_bytes"]
    budget = sum(peaks) // 2
    assert peaks[1] < peaks[0]
    data = answer("predict", *many, "--checkpoint", "optimal", "--vram", str(budget))
    assert data["memory"]["peak_bytes"] <= budget


def test_profile_is_a_table_of_units() -> None:
    result = call("profile", *SMALL, "--method", "full")
    assert result.exit_code == 0
    assert "blocks.0" in result.stdout
    assert "stored" in result.stdout


def test_measure_really_runs() -> None:
    data = answer("measure", *SMALL, "--method", "head", "--device", "cpu", "--steps", "1")
    predicted = answer("predict", *SMALL, "--method", "head", "--device", "cpu")
    assert data["schema"] == "budgetplan.measurement/1"
    assert data["rung"] == "measured"
    assert data["step_seconds"] > 0
    off = data["memory"]["peak_bytes"] / predicted["memory"]["peak_bytes"] - 1
    assert abs(off) < 0.005


def test_a_gpu_that_is_not_here_cannot_measure() -> None:
    from profiler.devices.nvml import detect_gpu

    gpu = detect_gpu()
    name = "gtx-1650" if gpu is None or gpu.spec.name != "gtx-1650" else "t4"
    line = refused(5, "measure", *SMALL, "--method", "head", "--device", name)
    assert "is not in this machine" in line


# ---- recommend -----------------------------------------------------------------------------------

ASK = (
    *("recommend", "--model", "test_vit", "--image-size", "32", "--methods", "head"),
    *("--effective-batch", "2", "--precisions", "fp32", "--no-validate", "--trials", "4"),
)


def test_the_classes_of_a_prediction_are_those_of_a_data_set() -> None:
    sizes = ("--model", "test_vit", "--method", "head", "--image-size", "32", "--batch-size", "2")
    counted = answer("predict", *sizes, "--data", "digits")
    given = answer("predict", *sizes, "--num-classes", "10")
    assert counted["workload"]["num_classes"] == 10
    assert counted["memory"] == given["memory"]
    again = answer("predict", *sizes, "--data", "digits", "--num-classes", "10")
    assert again["workload"]["num_classes"] == 10
    text = refused(2, "predict", *sizes, "--data", "digits", "--num-classes", "5")
    assert "--num-classes 5 and --data digits with 10 classes differ" in text
    assert refused(4, "predict", *sizes, "--data", "no/such/folder")
    assert call("predict", "--data", "no/such/folder", "--help").exit_code == 0


def test_recommend_writes_a_plan_that_show_reads() -> None:
    data = answer(*ASK, "--vram", "2GB", "--study", "small")
    assert data["schema"] == "budgetplan.recommendation/1"
    assert data["budget_bytes"] == 2 * 10**9
    assert data["study"] == "small"
    assert Path("studies/small.db").is_file()
    assert all(plan["measurement"] is None for plan in data["front"])
    shown = answer("show", data["plan_files"][data["recommended"]])
    assert shown == data["front"][data["recommended"]]
    again = call(*ASK, "--vram", "2GB", "--study", "small")
    assert again.exit_code == 0
    assert "RUN THIS" in again.stdout
    assert "another problem" in refused(4, *ASK, "--vram", "3GB", "--study", "small")


def test_training_in_fp16_on_a_cpu_is_warned_of() -> None:
    asked = [word.replace("fp32", "fp16") for word in ASK]
    plan = answer(*asked, "--vram", "2GB")["plan_files"][0]
    result = call("train", plan, "--device", "cpu", "--steps", "1", "--no-pretrained")
    assert result.stderr.count("is not enforced on a CPU") == 1
    assert result.exit_code == 0, result.stderr
    assert "this plan trains in fp16" in result.stderr
    assert "digits test images right, random weights" in result.stdout
    assert "ended after 0 of " in result.stdout
    assert "for selection, 359 for the test\n" in result.stdout


def test_training_under_another_placement_than_the_plan_s() -> None:
    asked = [word.replace("head", "bitfit") for word in ASK]
    plan = answer(*asked, "--vram", "2GB")["plan_files"][0]
    rest = ("--device", "cpu", "--steps", "1", "--no-pretrained")
    for policy, budget in (("static", ()), ("adaptive", ()), ("optimal", ("--vram", "1GB"))):
        out = ("--out", f"trained/{policy}")
        data = answer("train", plan, *rest, *out, "--checkpoint", policy, *budget)
        assert data["placement"]["policy"] == policy
    assert read_plan(Path("trained/optimal/plan.json")).budget_bytes == 10**9
    assert "give a policy too" in refused(2, "train", plan, *rest, "--vram", "1GB")
    tight = ("--checkpoint", "optimal", "--vram", "1MiB")
    assert "the smallest budget that would is" in refused(3, "train", plan, *rest, *tight)


def test_recommend_in_too_little_names_what_would_do() -> None:
    line = refused(3, *ASK, "--vram", "1MiB")
    assert "the smallest budget that would is" in line
    assert not Path("plans").exists()


def test_an_interrupted_search_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.search.sampling.PointSampler.propose", interrupted)
    result = call(*ASK, "--vram", "2GB", "--study", "mine")
    assert result.exit_code == 130
    assert result.stderr == "budgetplan: stopped; the same command with --study mine goes on\n"


def test_an_error_of_ours_is_one_line_and_a_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("what\nnow")

    monkeypatch.setattr("planner.search.sampling.PointSampler.propose", broken)
    assert "RuntimeError: what now" in refused(1, *ASK, "--vram", "2GB")
    monkeypatch.setenv("BUDGETPLAN_DEBUG", "1")
    assert isinstance(call(*ASK, "--vram", "2GB").exception, RuntimeError)


# ---- files ---------------------------------------------------------------------------------------


def broken_plans() -> Iterator[tuple[str, bytes]]:
    yield "text", b"no JSON"
    yield "list", b"[]"
    yield "foreign", b'{"schema": "somebody.else/1"}'
    yield "binary", bytes(range(256))


@pytest.mark.parametrize("command", ["show", "validate", "train"])
@pytest.mark.parametrize(
    "content", [c for _, c in broken_plans()], ids=[n for n, _ in broken_plans()]
)
def test_a_file_that_is_no_plan(command: str, content: bytes) -> None:
    Path("plan.json").write_bytes(content)
    assert "plan.json" in refused(4, command, "plan.json")


def test_a_plan_that_is_missing() -> None:
    assert "is missing" in refused(4, "show", "nothing.json")


def test_a_folder_without_images() -> None:
    Path("photos").mkdir()
    line = refused(4, "recommend", "--vram", "2GB", "--model", "test_vit", "--data", "photos")
    assert "photos" in line
    assert not Path("plans").exists()
    assert not Path("studies").exists()


def test_weights_that_are_missing() -> None:
    line = refused(
        4, "recommend", "--vram", "2GB", "--model", "test_vit", "--weights", "nothing.safetensors"
    )
    assert "nothing.safetensors" in line
    assert not Path("studies").exists()


def test_weights_of_another_model() -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"somebody.else": torch.zeros(1)}, "other.safetensors")
    line = refused(
        4, "recommend", "--vram", "2GB", "--model", "test_vit", "--weights", "other.safetensors"
    )
    assert "does not fit the model" in line


# ---- lists and scores ----------------------------------------------------------------------------


def test_score_reproduces_the_papers_row() -> None:
    data = answer(
        "score", "--accuracy", "89.7", "--inference-seconds", "21.3", "--inference-watts", "144.2",
        "--inference-peak-mib", "1084",
    )  # fmt: skip
    assert data["ns_e"] == pytest.approx(69.39, abs=0.01)
    assert data["ns_m"] == pytest.approx(70.52, abs=0.01)
    assert data["ns_sharp"] == pytest.approx(61.81, abs=0.01)
    assert data["netscore"] is None


def test_score_refuses_a_fraction() -> None:
    assert "for the fraction 0.897 write 89.7" in refused(2, "score", "--accuracy", "0.897")


def test_lists() -> None:
    assert "vit_small_patch16_224" in call("models").stdout
    assert "vit_small_patch16_224" in call("models", "vit_small").stdout
    assert "vit_s" in answer("models", "vit_small")["aliases"]
    assert "arXiv" in json.dumps(answer("methods"))
    assert "rtx-2060-super" in call("devices").stdout
    names = {row["name"] for row in answer("devices")["devices"]}
    assert {"cpu", "h200", "rtx-2060-super"} <= names


def test_methods_of_a_backbone_say_why_not() -> None:
    rows = {
        row["name"]: row["refused"] for row in answer("methods", "--model", "test_vit")["methods"]
    }
    assert rows["full"] is None
    assert "BatchNorm" in rows["bn_head"]


def test_a_dashboard_needs_a_study() -> None:
    assert "no study" in refused(4, "dashboard")
    assert "does not exist" in refused(4, "dashboard", "--storage", "sqlite:///nothing.db")
