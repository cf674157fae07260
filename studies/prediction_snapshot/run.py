"""Record, or check, what 300 command lines answer (``--json``), so that a change shows what moved.

python studies/prediction_snapshot/run.py record FILE   # 300 answers
python studies/prediction_snapshot/run.py check [N]     # N of them (default: all) against the kept file
python studies/prediction_snapshot/run.py diff OLD NEW  # what differs between two records
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
KEPT = HERE / "answers.json.gz"
CPU_SCRATCH_TOLERANCE = 0.1
"""Share by which a CPU's ``working_bytes`` may differ: its kernels' scratch is that of the machine."""
MISSING = "(no such key)"
WORDS = {"notes", "note", "reason", "message", "description", "source", "refused"}


def environment() -> dict[str, str]:
    """Return what an answer may depend on beside the program."""
    import timm
    import torch

    return {"torch": torch.__version__, "timm": timm.__version__}


def answer(arguments: list[str]) -> dict[str, Any]:
    """Run one command in this process; return its exit code and its JSON object."""
    from click.testing import CliRunner

    from planner.cli import cli

    result = CliRunner().invoke(cli, [*arguments, "--json"])
    try:
        told = json.loads(result.stdout)
    except json.JSONDecodeError:
        told = None
    # Times of this machine: a CPU's rates are timed on it, a search says how long it took, and
    # options without fine-tuning are those that could be replayed within seconds.
    on_cpu = "cpu" in arguments and arguments[0] in ("predict", "profile")
    return {"arguments": arguments, "exit_code": result.exit_code,
            "answer": _without(told, times=on_cpu)}  # fmt: skip


def _without(value: Any, *, times: bool) -> Any:
    dropped = {"seconds", "created", "provenance", "training_free"}
    if times:
        dropped |= {
            "step_seconds", "step_seconds_interval", "energy_joules", "energy_joules_interval",
            "forward_seconds", "recompute_seconds",
        }  # fmt: skip
    if isinstance(value, dict):
        return {k: _without(v, times=times) for k, v in value.items() if k not in dropped}
    if isinstance(value, list):
        return [_without(v, times=times) for v in value]
    return value


def answers(chosen: list[list[str]]) -> list[dict[str, Any]]:
    """Answer every case in an empty folder with empty caches."""
    import torch

    here, threads = Path.cwd(), torch.get_num_threads()
    cache = os.environ.get("BUDGETPLAN_CACHE")
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BUDGETPLAN_CACHE"] = f"{folder}/cache"
        os.chdir(folder)
        try:
            _write_plan()
            rows = []
            for number, case in enumerate(chosen):
                start = time.perf_counter()
                rows.append(answer(case))
                seconds = time.perf_counter() - start
                place = f"{number + 1} of {len(chosen)}"
                print(f"{place}: {seconds:.1f} s {' '.join(case)}", file=sys.stderr, flush=True)
            return rows
        finally:
            os.chdir(here)
            torch.set_num_threads(threads)
            del os.environ["BUDGETPLAN_CACHE"]
            if cache is not None:
                os.environ["BUDGETPLAN_CACHE"] = cache


def _write_plan() -> None:
    from cases import PLAN

    PLAN.write_bytes((HERE / "plan.json").read_bytes())


def differences(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Return (path, old, new) wherever two answers differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [
            d
            for k in keys
            for d in differences(old.get(k, MISSING), new.get(k, MISSING), f"{at}.{k}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for n, (a, b) in pairs for d in differences(a, b, f"{at}[{n}]")]
    return [] if old == new and type(old) is type(new) else [(at, old, new)]


def is_allowed(difference: tuple[str, Any, Any], arguments: list[str]) -> bool:
    """Return whether an answer may differ so: kernels of a CPU have the scratch of the machine."""
    path, old, new = difference
    if "cpu" not in arguments or not path.endswith(".working_bytes"):
        return False
    return bool(abs(new - old) <= CPU_SCRATCH_TOLERANCE * old)


def is_prose(path: str) -> bool:
    """True for what people read and programs do not."""
    return any(part.split("[")[0] in WORDS for part in path.split("."))


def report(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> int:
    """Print the differences; return how many answers differ in more than sentences and new keys."""
    moved, prose, paths = 0, 0, Counter[str]()
    added: set[str] = set()
    for before, after in zip(old, new, strict=True):
        if before["arguments"] != after["arguments"]:
            raise SystemExit("the two records are not of the same cases")
        found = differences(before, after)
        added |= {_without_indices(path) for path, a, _ in found if a is MISSING}
        numbers = [
            d
            for d in found
            if not (is_prose(d[0]) or d[1] is MISSING or is_allowed(d, before["arguments"]))
        ]
        prose += any(is_prose(path) for path, _, _ in found)
        if numbers:
            moved += 1
            paths.update(_without_indices(path) for path, _, _ in numbers)
            print(" ".join(before["arguments"]))
            if before["exit_code"] != after["exit_code"]:
                print(f"   now exit code {after['exit_code']}: {error_of(after['answer'])}")
            for path, a, b in numbers[:3]:
                print(f"   {path}: {str(a)[:80]} -> {str(b)[:80]}")
    print(f"{len(old)} answers: {moved} differ, {prose} in sentences")
    for path, count in paths.most_common(15):
        print(f"  {count:4d} {path}")
    if added:
        print("keys added:", ", ".join(sorted(added)))
    return moved


def error_of(answer: Any) -> str:
    """Return the message of an answer that is an error, else the beginning of the answer."""
    is_error = isinstance(answer, dict) and answer.get("schema") == "budgetplan.error/1"
    return str(answer["message"] if is_error else answer)[:500]


def _without_indices(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)


def load(path: Path) -> dict[str, Any]:
    """Read a record."""
    with gzip.open(path, "rt") as file:
        record: dict[str, Any] = json.load(file)
    return record


def main() -> None:
    """Do what the command line says."""
    from cases import cases

    match sys.argv[1:]:
        case ["record", name]:
            rows = answers(cases())
            text = json.dumps(
                {"environment": environment(), "answers": rows}, separators=(",", ":")
            )
            Path(name).write_bytes(gzip.compress(text.encode(), mtime=0))
        case ["check", *count]:
            kept = load(KEPT)["answers"]
            step = max(1, len(kept) // int(count[0])) if count else 1
            kept = kept[::step]
            raise SystemExit(bool(report(kept, answers([row["arguments"] for row in kept]))))
        case ["diff", old, new]:
            raise SystemExit(bool(report(load(Path(old))["answers"], load(Path(new))["answers"])))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
