"""A training overwrites nothing of others, shares its folder with no other, and tidies it up."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from plans import make_plan
from trainings import run, workload

from planner.api.plan_functions import default_folder
from planner.plan import (
    PLAN_FILE,
    Plan,
    check_replaceable,
    plan_file_name,
    read_plan,
    write_new_plan,
    write_plan,
)
from planner.training.history import HISTORY_FILE
from planner.training.output_folder import MARKER_FILE, needed_disk_bytes, training_folder
from planner.training.run_files import CSV_FILE, SVG_FILE
from planner.training.trained_model import MODEL_FOLDER
from profiler.errors import InputError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(workload(model="test_vit", method="head", rank=None))


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "name", [PLAN_FILE, HISTORY_FILE, f"{MODEL_FOLDER}/weights", "checkpoint-7/model.bin"]
)
def test_what_somebody_else_wrote_is_not_touched(tmp_path: Path, plan: Plan, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": "mine"}')
    before = content(tmp_path)
    with (
        pytest.raises(InputError, match="which budgetplan did not write; give another") as caught,
        training_folder(tmp_path / "out", plan=plan, is_resumed=False),
    ):
        pytest.fail("the folder was accepted")
    assert name.partition("/")[0] in str(caught.value)
    assert content(tmp_path) == before


def test_other_files_may_stand_in_the_folder(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with training_folder(tmp_path, plan=plan, is_resumed=False):
        run(plan, tmp_path, epochs=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "notes.txt", MARKER_FILE, PLAN_FILE, HISTORY_FILE, MODEL_FOLDER, "checkpoint-2",
        CSV_FILE, SVG_FILE,
    }  # fmt: skip
    # with the marker gone, the record of the training shows whose folder it is
    (tmp_path / MARKER_FILE).unlink()
    with training_folder(tmp_path, plan=plan, is_resumed=True):
        assert len(run(plan, tmp_path, epochs=2, resume=True).epochs) == 2


def test_a_folder_in_which_nothing_was_written_is_as_before(tmp_path: Path, plan: Plan) -> None:
    with training_folder(tmp_path / "a" / "new", plan=plan, is_resumed=False):
        pass
    assert not (tmp_path / "a" / "new").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with training_folder(tmp_path, plan=plan, is_resumed=False):
        pass
    assert content(tmp_path) == {"notes.txt": "mine"}


def test_drafts_of_a_killed_training_are_removed(tmp_path: Path, plan: Plan) -> None:
    with training_folder(tmp_path, plan=plan, is_resumed=False):
        run(plan, tmp_path, epochs=1)
    before = {path.name for path in tmp_path.iterdir()}
    for name in ("checkpoint-9", "model"):
        (tmp_path / f".budgetplan-draft-{name}").mkdir()
    (tmp_path / ".plan.json.x1y2.budgetplan-draft").write_text("{")
    with training_folder(tmp_path, plan=plan, is_resumed=True):
        assert {path.name for path in tmp_path.iterdir()} == before


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, plan: Plan) -> None:
    write_plan(plan, tmp_path / "plan.json")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from planner.plan import read_plan\n"
        "from planner.training.output_folder import training_folder\n"
        "out, plan = Path(sys.argv[1]), read_plan(Path(sys.argv[2]))\n"
        "with training_folder(out, plan=plan, is_resumed=False):\n"
        "    print('there', flush=True)\n"
        "    input()\n"
    )
    output = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(output), str(tmp_path / "plan.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        with (
            pytest.raises(InputError, match=f"process {child.pid} is training into"),
            training_folder(output, plan=plan, is_resumed=False),
        ):
            pytest.fail("two processes hold the folder")
        child.kill()
    with training_folder(output, plan=plan, is_resumed=False):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(small_disk: Path, plan: Plan) -> None:
    output = small_disk / "out"
    with training_folder(output, plan=plan, is_resumed=False):
        run(plan, output, epochs=1)
    filler = small_disk / "filler"

    def fill(_: object = None) -> None:
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()

    with pytest.raises(InputError, match="free some space and continue with --resume") as caught:
        run(plan, output, epochs=2, resume=True, on_progress=fill)
    with (
        pytest.raises(InputError, match="free some space"),
        training_folder(output, plan=plan, is_resumed=True),
    ):
        pytest.fail("the full disk was not seen before the work")
    assert "\n" not in str(caught.value)
    names = {path.name for path in output.iterdir()}
    assert names == {
        MARKER_FILE, PLAN_FILE, HISTORY_FILE, MODEL_FOLDER, "checkpoint-2", CSV_FILE, SVG_FILE
    }  # fmt: skip
    filler.unlink()
    with training_folder(output, plan=plan, is_resumed=True):
        assert len(run(plan, output, epochs=2, resume=True).epochs) == 2


def test_the_bytes_that_a_training_needs(plan: Plan) -> None:
    """Two checkpoints of tensors and AdamW's two moments, and the model: 7 floats a parameter."""
    trainable = plan.prediction.parameters.trainable
    assert needed_disk_bytes(plan, is_resumed=False) == 7 * 4 * trainable + (1 << 20)
    assert needed_disk_bytes(plan, is_resumed=True) == 4 * 4 * trainable + (1 << 20)


@pytest.mark.parametrize("name", ["...json", ".json", "..", "-.json"])
def test_a_plans_name_cannot_leave_the_folder_of_trainings(
    tmp_path: Path, plan: Plan, name: str
) -> None:
    path = tmp_path / (name if name != ".." else "x/...json")
    write_plan(plan, path)
    folder = default_folder(path)
    assert folder.parent == Path("trained")
    made = Path(plan_file_name(plan.candidate)).stem
    assert folder.name == ("json" if name == ".json" else made)


def test_an_equal_plan_keeps_its_file_whenever_and_by_which_study_it_was_made(
    tmp_path: Path, plan: Plan
) -> None:
    def written(seed: int, study: str, at: str) -> str:
        provenance = {
            "made_at": at, "study": study, "storage": f"sqlite:///{study}.db", "seed": seed,
        }  # fmt: skip
        made = replace(plan, provenance={**plan.provenance, **provenance})
        return write_new_plan(made, tmp_path / "plan.json").name

    assert written(0, "monday", "2026-01-05") == "plan.json"
    assert written(0, "tuesday", "2026-01-06") == "plan.json"
    assert written(1, "wednesday", "2026-01-07") == "plan-2.json"
    (tmp_path / "plan.json").unlink()
    assert written(1, "thursday", "2026-01-08") == "plan-2.json"
    kept = read_plan(tmp_path / "plan-2.json").provenance
    assert (kept["study"], kept["made_at"]) == ("wednesday", "2026-01-07")
    assert written(0, "friday", "2026-01-09") == "plan.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan-2.json", "plan.json"]


def test_a_plan_of_other_content_keeps_its_name(tmp_path: Path, plan: Plan) -> None:
    path = tmp_path / "plan.json"
    (tmp_path / "plan-2.json").write_text("mine")
    assert write_new_plan(plan, path) == path
    assert write_new_plan(plan, path) == path
    other = make_plan(plan.candidate.workload.replace(micro_batch=4))
    assert write_new_plan(other, path) == tmp_path / "plan-3.json"
    assert json.loads(path.read_text()) == plan.to_json()
    assert (tmp_path / "plan-2.json").read_text() == "mine"
    check_replaceable(path, plan)
    check_replaceable(tmp_path / "new.json", plan)
    for name in ("plan-2.json", "plan-3.json"):
        with pytest.raises(InputError, match="no plan for this candidate"):
            check_replaceable(tmp_path / name, plan)
