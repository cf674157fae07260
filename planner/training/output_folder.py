"""The folder that a training writes into: its owner, its lock, its room, and leftovers in it.

Nothing that this program did not write is deleted or overwritten. A folder belongs to this program
if it has the marker file, a record of a training, or a checkpoint. The marker is also the lock file
(planner/disk/file_lock.py): two trainings cannot write into one folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planner.disk.drafts import cannot_write, remove_drafts
from planner.disk.file_lock import FileLock, read_holder
from planner.disk.free_space import check_folder
from planner.disk.json_files import read_json
from planner.plan import PLAN_FILE, Plan
from planner.training.checkpoints import (
    BEST_PREFIX,
    is_checkpoint,
    remove_old_checkpoints,
)
from planner.training.history import CHECKPOINT_PREFIX, HISTORY_FILE, TRAINING_SCHEMA
from planner.training.run_files import CSV_FILE, SVG_FILE
from planner.training.trained_model import MODEL_FOLDER
from profiler.errors import InputError
from profiler.units import MIB

MARKER_FILE = ".budgetplan"

OPTIMIZER_BYTES = {"adamw": 8, "sgd": 4, "adamw8bit": 2, "adamw_host": 8}
"""Bytes of optimizer state for each trained parameter."""


@contextmanager
def training_folder(output: Path, *, plan: Plan, is_resumed: bool) -> Iterator[None]:
    """Check a folder and hold its lock; remove the drafts of a killed training.

    If nothing was written into a new folder, it is removed at the end.

    Args:
        output: folder of the result.
        plan: plan that will be trained.
        is_resumed: whether the training continues one that is in the folder.

    Raises:
        InputError: the folder holds files of others, another process trains into it, or it cannot
            be written into.
    """
    foreign = foreign_entry(output)
    if foreign is not None:
        raise InputError(
            f"{output} holds {foreign}, which budgetplan did not write; "
            "give another folder with --out"
        )
    check_folder(output, needed_bytes=needed_disk_bytes(plan, is_resumed=is_resumed))
    is_new, lock = not output.exists(), FileLock(output / MARKER_FILE)
    is_marked = lock.path.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        is_free = lock.acquire(wait=False)
    except OSError as error:
        raise cannot_write(output, error) from error
    if not is_free:
        raise InputError(
            f"{lock.holder()} is training into {output}; "
            "wait until it has ended, or give another folder with --out"
        )
    try:
        remove_drafts(output)
        remove_old_checkpoints(output)
        yield
    finally:
        is_unused = not is_marked and not any(_own_entries(output))
        lock.release(remove=is_unused)
        if is_unused and is_new and not any(output.iterdir()):
            output.rmdir()


def foreign_entry(output: Path) -> str | None:
    """Return a name that a training would overwrite and that this program did not write.

    Raises:
        InputError: the path is not a folder.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the result")
    entries = sorted(_own_entries(output))
    if not entries or _is_ours(output):
        return None
    return entries[0]


def needed_disk_bytes(plan: Plan, *, is_resumed: bool) -> int:
    """Return a lower bound of the bytes that a training writes.

    Two checkpoints exist while the second is written, and the model is saved beside them.
    """
    workload, trainable = plan.candidate.workload, plan.prediction.parameters.trainable
    tensors = 4 * trainable
    is_projected = workload.method == "galore"  # its state is smaller, by a ratio of its own
    state = 0 if is_projected else OPTIMIZER_BYTES.get(workload.optimizer, 0) * trainable
    checkpoints = 1 if is_resumed else 2
    return checkpoints * (tensors + state) + tensors + MIB


def _own_entries(output: Path) -> Iterator[str]:
    """Yield the names in a folder that a training may overwrite or delete."""
    if not output.is_dir():
        return
    for path in output.iterdir():
        name = path.name
        is_record = name in (PLAN_FILE, HISTORY_FILE, MODEL_FOLDER, CSV_FILE, SVG_FILE)
        if is_record or name.startswith((CHECKPOINT_PREFIX, BEST_PREFIX)):
            yield name


def _is_ours(output: Path) -> bool:
    if read_holder(output / MARKER_FILE):
        return True
    if any(is_checkpoint(path) for path in output.glob(f"{CHECKPOINT_PREFIX}*")):
        return True
    try:
        record = read_json(output / HISTORY_FILE, kind="training")
    except InputError:
        return False
    return isinstance(record, dict) and record.get("schema") == TRAINING_SCHEMA
