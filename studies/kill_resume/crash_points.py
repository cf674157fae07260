"""Kills a small training at each of its operations on files, and resumes it.

    python studies/kill_resume/crash_points.py FOLDER [--every K]

An audit hook counts the events by which Python opens, makes, renames and removes files in the
output folder, and sends SIGKILL to its own process at event N. Each training is a fork of this
process, which has imported everything and trains nothing itself. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch

from planner.plan import Accuracy, Plan
from planner.recipe import Recipe
from planner.training.checkpoints import latest_checkpoint
from planner.training.images.image_set import ImageData
from planner.training.output_folder import training_folder
from planner.training.plan_check import load_data_for
from planner.training.run_options import RunOptions
from planner.training.training_run import train
from profiler.models.parameter_count import count_parameters
from profiler.records import DeviceLabel, Memory, Report, Rung
from profiler.workload import Candidate, Workload

EPOCHS = 6
"""Epochs of the recipe. The training stops before, by its selection accuracy."""

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"}


def small_plan() -> Plan:
    """Return a plan whose training takes a tenth of a second, with dropout and AdamW."""
    workload = Workload(
        model="test_vit", method="lora", rank=2, dropout=0.2, micro_batch=4, accumulation=2,
        image_size=32, num_classes=10,
    )  # fmt: skip
    candidate = Candidate(workload=workload)
    return Plan(
        candidate=candidate,
        prediction=Report(
            candidate=candidate,
            device=DeviceLabel(name="cpu", full_name="CPU", kind="cpu"),
            rung=Rung.COMPOSED,
            memory=Memory(peak_bytes=1 << 20),
            flops=None,
            step_seconds=None,
            energy_joules=None,
            parameters=count_parameters(workload),
        ),
        accuracy=Accuracy(value=None, source="not run", kind="none"),
        budget_bytes=10**9,
        recipe=Recipe(
            learning_rate=1e-3,
            warm_up_steps=1,
            epochs=EPOCHS,
            patience_epochs=1,
            weights="random",
            source="study of kills",
        ),
    )


def small_data(plan: Plan) -> ImageData:
    data = load_data_for(plan.candidate.workload, "digits")
    return replace(
        data,
        train=data.train.sample(32, seed=0),
        selection=data.selection.sample(12, seed=0),
        test=data.test.sample(12, seed=0),
        selection_positions=(),
    )


def train_into(folder: Path, plan: Plan, data: ImageData) -> None:
    """Train, or resume if there is a checkpoint."""
    is_resumed = latest_checkpoint(folder) is not None
    with training_folder(folder, plan=plan, is_resumed=is_resumed):
        train(
            plan,
            RunOptions(data="digits", pretrained=False),
            output=folder,
            images=data,
            resume=is_resumed,
        )


def kill_at(event_number: int, folder: Path) -> list[str]:
    """Install the hook; return the list that it fills with the names of the events."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not arguments or not str(arguments[0]).startswith(str(folder)):
            return
        seen.append(f"{event} {Path(str(arguments[0])).name}")
        if len(seen) == event_number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def forked(work: Callable[[], None]) -> int:
    """Run a function in a fork; return 0, or the negative number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(folder: Path) -> dict[str, Any]:
    """Return all of a finished training but its times: tensors, record, optimizer, random states.

    Readings of a part of the images are left out: they are made once a minute.
    """
    from safetensors.torch import load_file

    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    record = json.loads((folder / "training.json").read_text())
    progress = json.loads((checkpoint / "progress.json").read_text())
    for holder in (record, progress):
        most = max(reading["images"] for reading in holder["readings"] if reading["part"] != "test")
        holder["readings"] = [
            r for r in holder["readings"] if r["part"] == "test" or r["images"] == most
        ]
    tensors = {
        str(path.relative_to(folder)): load_file(path)
        for path in sorted(folder.rglob("*.safetensors"))
    }
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    return {"record": record, "progress": progress, "tensors": tensors, "state": state}


def same(left: Any, right: Any) -> bool:
    """Compare two contents bit for bit, apart from keys that hold times."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        keys = {key for key in left | right if key not in ("seconds", "epoch_began")}
        return all(k in left and k in right and same(left[k], right[k]) for k in keys)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def leftovers(folder: Path, reference: Path) -> list[str]:
    """Return names that the folder of an uninterrupted training does not have."""
    return sorted({path.name for path in folder.iterdir()} - {p.name for p in reference.iterdir()})


def rows(work: Path, *, every: int = 1) -> list[dict[str, Any]]:
    """Kill at every so many events; return one row for each kill."""
    torch.set_num_threads(1)
    plan = small_plan()
    data = small_data(plan)
    reference = work / "straight"
    events_file = work / "events"

    def straight() -> None:
        seen = kill_at(0, reference)
        train_into(reference, plan, data)
        events_file.write_text("\n".join(seen))

    assert forked(straight) == 0
    wanted, events = content(reference), events_file.read_text().splitlines()
    assert len(wanted["progress"]["epochs"]) < EPOCHS, "the training must stop early"
    found = []
    for number in range(1, len(events) + 1, every):
        folder = work / f"killed-{number}"

        def killed(number: int = number, folder: Path = folder) -> None:
            kill_at(number, folder)
            train_into(folder, plan, data)

        code = forked(killed)
        kept = latest_checkpoint(folder)
        again = forked(lambda folder=folder: train_into(folder, plan, data))
        found.append(
            {
                "event": number,
                "name": events[number - 1],
                "killed": code == -signal.SIGKILL,
                "kept": None if kept is None else kept.name,
                "resumed": again == 0,
                "same": again == 0 and same(content(folder), wanted),
                "leftovers": leftovers(folder, reference),
            }
        )
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    for row in rows(arguments.folder.resolve(), every=arguments.every):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
