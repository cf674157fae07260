"""Kills commands at random moments of every stage, starts them again and compares.

    python studies/kill_resume/run.py [PART ...] [--share S] [--check]

Parts: those of ``KILLS``, crash_points, stopped, at_once, full_disk (needs root). Without one, all
are run. S scales the numbers of kills. --check prints the rows, keeps none, and fails if one is not
good.
The README describes what is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

from bench import CPU_SPACE, DATA, GPU_SPACE, SMALL_MODEL, Bench
from crash_points import content, leftovers, rows, same
from harness import Rows, write_summary
from stopped_commands import stopped_part
from warm_commands import import_everything

TRIALS = 16
EPOCHS = 3

SEARCHES = {
    "recommend, every point": (*GPU_SPACE, "--no-validate"),
    "recommend, sampler": (*GPU_SPACE, "--no-validate", "--trials", str(TRIALS)),
    "recommend, real runs": (*GPU_SPACE, "--top", "1", "--steps", "2", "--no-find-lr"),
    "recommend, probe": (*CPU_SPACE, "--no-validate", "--probe-minutes", "0.15"),
    "recommend, learning rate": (*CPU_SPACE, "--no-validate", "--find-lr"),
}
"""Arguments of each kind of search. Only on a CPU are probes and learning-rate tests run here."""

KILLS = {
    "recommend, every point": 40,
    "recommend, sampler": 15,
    "recommend, real runs": 15,
    "recommend, probe": 15,
    "recommend, learning rate": 15,
    "validate": 20,
    "train": 60,
    "features": 30,
}
"""Number of kills of each command."""


def is_kept(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Return whether everything from before is there unchanged."""
    return all(after.get(key) == value for key, value in before.items())


def search_part(
    part: str, bench: Bench, count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    arguments = (*SEARCHES[part], "--out", "found")
    is_timed = "cpu" in arguments
    shutil.rmtree(bench.folder / "studies", ignore_errors=True)  # that of another device
    stages = bench.straight(*arguments)
    wanted, wanted_runs = sorted(bench.trials(is_timed=is_timed)), bench.probe_runs()
    wanted_plans = bench.plans("found")
    for _ in range(count):
        shutil.rmtree(bench.folder / "studies")
        shutil.rmtree(bench.folder / "found")
        row = bench.kill(stages, rng, *arguments)
        before, runs_before = bench.trials(is_timed=is_timed), bench.probe_runs()
        real_before = bench.real_runs()
        plans = {p: p.stat().st_mtime_ns for p in (bench.folder / "found").rglob("*.json")}
        again, text = bench.run(*arguments)
        after, runs = bench.trials(is_timed=is_timed), bench.probe_runs()
        real = bench.real_runs()
        if "sampler" in part:
            is_whole = len(after) == TRIALS
        elif is_timed:  # the times of a search decide which of its points the study keeps
            is_whole = len(after) >= max(1, len(before))
            is_whole = is_whole and ("probe" in part or runs.keys() == wanted_runs.keys())
        else:
            is_whole = sorted(after) == wanted
        kept = after[: len(before)] == before and is_kept(runs_before, runs)
        found = bench.plans("found")
        # measured times and accuracies differ from run to run, and so may the plans
        checks = {
            "ends": not again, "whole": is_whole, "kept": kept,
            "distinct": len(set(after)) == len(after),
            "real runs kept": real[: len(real_before)] == real_before,
            "real runs distinct": len({key for key, _ in real}) == len(real),
            "real runs": bool(real) or "real runs" not in part,
            "plans": found == wanted_plans if "every point" in part else bool(found),
            "plans kept": all(p.exists() and p.stat().st_mtime_ns == t for p, t in plans.items()),
        }  # fmt: skip
        yield row | {
            "part": part, "trials_before": len(before), "trials": len(after),
            "runs_before": len(runs_before), "runs": len(runs), "again": again,
            "real_before": len(real_before), "real": len(real),
            "same": all(checks.values()), "wrong": [name for name, good in checks.items() if not good],
            "leftovers": bench.temporary_files(), "text": text[-300:] if again else "",
        }  # fmt: skip
    shutil.rmtree(bench.folder / "studies")


def validate_part(
    part: str, bench: Bench, count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    out = bench.folder / "validated.json"
    arguments = ("validate", bench.any_plan(), *DATA, "--steps", "2", "--device", "cpu",
                 "--out", out.name)  # fmt: skip
    stages = bench.straight(*arguments)
    for index in range(count):
        is_there = index % 2 == 1  # a file of an earlier run must survive the kill
        if not is_there:
            out.unlink(missing_ok=True)
        row = bench.kill(stages, rng, *arguments)
        is_whole = (
            bool(json.loads(out.read_bytes())["measurement"]) if out.exists() else not is_there
        )
        again, text = bench.run(*arguments)
        yield row | {
            "part": part, "again": again, "same": not again and is_whole and out.exists(),
            "leftovers": bench.temporary_files(), "text": text[-300:] if again else "",
        }  # fmt: skip


def train_part(part: str, bench: Bench, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    arguments = ("train", bench.any_plan(), *DATA, "--epochs", str(EPOCHS), "--device", "cpu")
    stages = bench.straight(*arguments, "--out", "straight")
    wanted = content(bench.folder / "straight")
    for index in range(count):
        folder = bench.folder / f"out-{index}"
        own = (*arguments, "--out", folder.name)
        row = bench.kill(stages, rng, *own)
        kept = sorted(p.name for p in folder.glob("checkpoint-*")) if folder.exists() else []
        again, text = bench.run(*own, *(["--resume"] if kept else []))
        found = {} if again else content(folder)
        wrong = [name for name in wanted if not same(found.get(name), wanted[name])]
        yield row | {
            "part": part, "kept": kept, "again": again, "same": not wrong, "wrong": wrong,
            "leftovers": leftovers(folder, bench.folder / "straight") if folder.exists() else [],
            "text": text[-300:] if again else "",
        }  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)


def features_part(
    part: str, bench: Bench, count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    arguments = ("features", *SMALL_MODEL, *DATA, "--progress", "none")
    stages = bench.straight(*arguments)
    _, wanted = bench.run(*arguments)
    folder = bench.cache / "features"
    for _ in range(count):
        shutil.rmtree(folder)
        row = bench.kill(stages, rng, *arguments)
        before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
        again, text = bench.run(*arguments)
        after = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
        yield row | {
            "part": part, "chunks_before": len(before), "chunks": len(after), "again": again,
            "same": text == wanted and is_kept(before, after),
            "leftovers": bench.temporary_files(), "text": text[-300:] if again else "",
        }  # fmt: skip


def at_once_part(_: str, bench: Bench, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Start 2 to 8 processes at once on one study, one cache and one folder."""
    plan = bench.any_plan()
    search = (*GPU_SPACE, "--no-validate", "--trials", str(TRIALS))
    features = ("features", *SMALL_MODEL, *DATA, "--progress", "none")
    _, wanted = bench.run(*features)
    training = ("train", plan, *DATA, "--epochs", "1", "--device", "cpu", "--out", "shared")
    bench.run(*training[:-1], "alone")
    for _ in range(count):
        processes = rng.randint(2, 8)
        shutil.rmtree(bench.folder / "studies", ignore_errors=True)
        for profile in bench.cache.glob("*.npz"):
            profile.unlink()
        codes, texts, alive = _at_once(bench, processes, *search)
        trials = bench.trials(is_timed=False)
        yield {
            "part": "recommend at once", "processes": processes, "codes": codes,
            "trials": len(trials), "distinct": len(set(trials)), "alive": alive,
            "same": len(trials) == len(set(trials)) == TRIALS and not any(codes),
            "leftovers": bench.temporary_files(), "text": texts[-1][-300:] if any(codes) else "",
        }  # fmt: skip
        shutil.rmtree(bench.cache / "features")
        codes, texts, alive = _at_once(bench, processes, *features)
        yield {
            "part": "features at once", "processes": processes, "codes": codes,
            "same": not any(codes) and set(texts) == {wanted}, "alive": alive,
            "leftovers": bench.temporary_files(),
        }  # fmt: skip
        codes, texts, alive = _at_once(bench, processes, *training)
        refusals = [t for t in texts if "is training into" in t or "holds a training already" in t]
        yield {
            "part": "train at once", "processes": processes, "codes": codes,
            "same": codes == [0] + [4] * (processes - 1) and len(refusals) == processes - 1,
            "alive": alive, "leftovers": leftovers(bench.folder / "shared", bench.folder / "alone"),
        }  # fmt: skip
        shutil.rmtree(bench.folder / "shared")


def _at_once(bench: Bench, processes: int, *arguments: str) -> tuple[list[int], list[str], int]:
    """Run one command several times at once; return codes, texts, and processes left."""
    started = [bench.start(*arguments, name=f"log-{index}") for index in range(processes)]
    codes = sorted(command.wait() for command in started)
    alive = sum(command.alive_after_two_seconds() for command in started)
    return codes, [command.text() for command in started], alive


def full_disk_part(
    _: str, bench: Bench, count: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Train and search on disks of a few sizes; a refusal is one line with exit code 4."""
    plan = str((bench.folder / bench.any_plan()).resolve())
    sizes = [rng.randint(64, 3000) for _ in range(count)]
    for kibibytes in sizes:
        with small_disk(bench.folder / "disk", kibibytes) as disk:
            for part, arguments in (
                ("train", ("train", plan, *DATA, "--epochs", "2", "--device", "cpu",
                           "--out", str(disk / "out"))),
                ("recommend", (*GPU_SPACE, "--no-validate", "--storage", f"sqlite:///{disk}/s.db",
                               "--out", str(disk / "plans"))),
            ):  # fmt: skip
                command = bench.start(*arguments)
                code, text = command.wait(), command.text()
                lines = [line for line in text.splitlines() if line.startswith("budgetplan: ")]
                yield {
                    "part": f"{part} on a small disk", "kibibytes": kibibytes, "code": code,
                    "line": lines[-1] if lines else "",
                    "alive": command.alive_after_two_seconds(),
                    "same": code in (0, 4) and "internal error" not in text
                    and "Traceback" not in text,
                    "leftovers": [p.name for p in disk.rglob("*budgetplan-draft*")],
                }  # fmt: skip
                for path in disk.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


KillPart = Callable[[str, Bench, int, random.Random], Iterator[dict[str, Any]]]

PARTS: dict[str, KillPart] = {
    **dict.fromkeys(SEARCHES, search_part),
    "validate": validate_part,
    "train": train_part,
    "features": features_part,
}

OTHERS: dict[str, tuple[KillPart, int]] = {
    "stopped": (stopped_part, 2),
    "at_once": (at_once_part, 6),
    "full_disk": (full_disk_part, 6),
}
"""Parts without a second run, with their numbers of rounds."""


def is_good(row: dict[str, Any]) -> bool:
    return bool(row["same"]) and not row["alive"] and not row["leftovers"]


def all_rows(folder: Path, wanted: list[str], *, share: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of the parts. The forks of ``crash_points`` come first: they import least."""
    if "crash_points" in wanted:
        for row in rows(folder):
            yield {"part": "crash point", "alive": 0, **row}
    import_everything()
    bench = Bench(folder / "work")
    code, text = bench.run(*CPU_SPACE, "--no-validate")
    assert code == 0, text
    for part in (p for p in PARTS if p in wanted):
        count = max(1, round(share * KILLS[part]))
        yield from PARTS[part](part, bench, count, random.Random(part))
    for part, (run, rounds) in OTHERS.items():
        if part in wanted:
            yield from run(part, bench, max(1, round(share * rounds)), random.Random(part))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["crash_points", *PARTS, *OTHERS])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(HERE.parents[1])  # for sandboxes, which start in other folders
    os.environ["OMP_NUM_THREADS"] = "1"
    book, bad = Rows(HERE), 0
    if not arguments.check and len(arguments.parts) == len(PARTS) + len(OTHERS) + 1:
        book.clear()  # a campaign of one commit
    with tempfile.TemporaryDirectory() as name:
        for row in all_rows(Path(name).resolve(), arguments.parts, share=arguments.share):
            bad += not is_good(row)
            if not arguments.check:
                book.append(row)
            print("ok " if is_good(row) else "BAD", json.dumps(row), flush=True)
    if arguments.check:
        sys.exit(bad > 0)
    book.pack()
    summarise(book)


def summarise(book: Rows) -> None:
    """Write ``summary.json``: for each part the runs, and how many were as they should be."""
    found = book.read()
    parts = sorted({row["part"] for row in found})
    counts = {
        part: {
            "runs": sum(row["part"] == part for row in found),
            "killed": sum(row["part"] == part and bool(row.get("code")) for row in found),
            "good": sum(row["part"] == part and is_good(row) for row in found),
        }
        for part in parts
    }
    stages = sorted({f"{row['part']}: {row['stage']}" for row in found if "stage" in row})
    write_summary(HERE, found, parts=counts, stages=stages)


if __name__ == "__main__":
    main()
