"""Kills commands at random moments, starts them again and compares; shares and fills up folders.

    python studies/kill_resume/run.py N [--seed S] [--only PART...]

Parts: crash_points, train, recommend, validate, at_once, full_disk (needs root). N is the number of
kills of each command. The README describes what is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

from crash_points import content, leftovers, rows, same
from harness import Rows, write_summary

COMMAND = [sys.executable, "-c", "from planner.cli import main; main()"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
TOKEN = "BUDGETPLAN_KILL_STUDY"
TRIALS = 16
EPOCHS = 3
SPACE = (
    "--vram", "200MB", "--model", "test_vit", "--image-size", "32", "--device", "cpu",
    "--methods", "head,bitfit", "--precisions", "fp32", "--effective-batch", "16",
    "--top", "1", "--steps", "2", "--trials", str(TRIALS), "--study", "s", "--no-pretrained",
)  # fmt: skip


class Bench:
    """A working folder, and commands that run in it under a token in their environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = f"{os.getpid()}-{folder.name}"
        cache = folder.parent / "cache"
        self.environment = os.environ | {
            TOKEN: self.token,
            "PYTHONPATH": str(HERE.parents[1]),
            "OMP_NUM_THREADS": "1",
            "BUDGETPLAN_CACHE": str(cache),
        }
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, float]:
        """Run a command; return its exit code, its output and its seconds."""
        began = time.monotonic()
        process = self.start(*arguments)
        text, _ = process.communicate()
        return process.returncode, text, time.monotonic() - began

    def kill(self, number: int, after: float, *arguments: str) -> tuple[int, str]:
        """Start a command, send a signal after some seconds, and wait for its end."""
        process = self.start(*arguments)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        process.send_signal(number)
        text, _ = process.communicate()
        return process.returncode, text

    def processes(self) -> list[int]:
        """Return the processes that carry the token, this one's children or not."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_zombie = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not is_zombie and f"{TOKEN}={self.token}".encode() in (
                    path / "environ"
                ).read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found

    def after_two_seconds(self) -> int:
        """Return the number of processes that are alive two seconds later."""
        deadline = time.monotonic() + 2
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        return len(self.processes())

    def temporary_files(self) -> list[str]:
        """Return drafts and locks anywhere in the folder, and the cache's temporary files."""
        names = [p for p in self.folder.rglob("*") if "budgetplan-draft" in p.name]
        names += [p for p in self.folder.rglob("*.lock")] + [*self.folder.rglob("*.tmp")]
        return sorted(str(p.relative_to(self.folder)) for p in names)

    def trials(self) -> list[str]:
        """Return the points of the study, oldest first; empty without a study."""
        path = self.folder / "studies" / "s.db"
        if not path.exists():
            return []
        query = (
            "SELECT t.number, t.state, group_concat(p.param_name || '=' || p.param_value) FROM"
            " (SELECT * FROM trial_params ORDER BY param_name) p JOIN trials t USING (trial_id)"
            " GROUP BY t.number ORDER BY t.number"
        )
        with contextlib.closing(sqlite3.connect(path)) as database:
            try:
                found = database.execute(query).fetchall()
            except sqlite3.OperationalError:  # killed before the tables were made
                return []
        return [f"{state} {point}" for _, state, point in found]


def train_part(bench: Bench, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    options = ("--data", "digits", "--no-pretrained", "--epochs", str(EPOCHS), "--device", "cpu")
    plan = str(next((bench.folder / "plans").rglob("*.json")))
    code, text, seconds = bench.run("train", plan, *options, "--out", "straight")
    assert code == 0, text
    wanted = content(bench.folder / "straight")
    for index in range(count):
        number, out = rng.choice(SIGNALS), f"out-{index}"
        arguments = ("train", plan, *options, "--out", out)
        code, _ = bench.kill(number, rng.uniform(0, seconds), *arguments)
        alive = bench.after_two_seconds()
        folder = bench.folder / out
        kept = sorted(p.name for p in folder.glob("checkpoint-*")) if folder.exists() else []
        code_again, text, _ = bench.run(*arguments, *(["--resume"] if kept else []))
        yield {
            "part": "train", "signal": number, "code": code, "kept": kept, "alive": alive,
            "again": code_again, "same": code_again == 0 and same(content(folder), wanted),
            "leftovers": leftovers(folder) if folder.exists() else [],
        }  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)


def recommend_part(bench: Bench, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    code, text, seconds = bench.run("recommend", *SPACE)
    assert code == 0, text
    for _ in range(count):
        shutil.rmtree(bench.folder / "studies")
        number = rng.choice(SIGNALS)
        code, _ = bench.kill(number, rng.uniform(0, seconds), "recommend", *SPACE)
        alive, before = bench.after_two_seconds(), bench.trials()
        code_again, text, _ = bench.run("recommend", *SPACE)
        after = bench.trials()
        yield {
            "part": "recommend", "signal": number, "code": code, "alive": alive,
            "trials_before": len(before), "trials": len(after), "distinct": len(set(after)),
            "again": code_again,
            "same": code_again == 0 and len(after) == TRIALS and after[: len(before)] == before,
            "leftovers": bench.temporary_files(),
        }  # fmt: skip


def validate_part(bench: Bench, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    plan = str(next((bench.folder / "plans").rglob("*.json")))
    arguments = ("validate", plan, "--no-pretrained", "--steps", "2", "--device", "cpu",
                 "--out", "validated.json")  # fmt: skip
    code, text, seconds = bench.run(*arguments)
    assert code == 0, text
    for _ in range(count):
        (bench.folder / "validated.json").unlink(missing_ok=True)
        number = rng.choice(SIGNALS)
        code, _ = bench.kill(number, rng.uniform(0, seconds), *arguments)
        alive = bench.after_two_seconds()
        code_again, text, _ = bench.run(*arguments)
        yield {
            "part": "validate", "signal": number, "code": code, "alive": alive,
            "again": code_again, "same": (bench.folder / "validated.json").exists(),
            "leftovers": bench.temporary_files(),
        }  # fmt: skip


def at_once_part(bench: Bench, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Start 2 to 4 processes at once on one study, one cache and one folder."""
    plan = str(next((bench.folder / "plans").rglob("*.json")))
    for _ in range(count):
        shutil.rmtree(bench.folder / "studies", ignore_errors=True)
        processes = rng.randint(2, 4)
        started = [bench.start("recommend", *SPACE, "--no-validate") for _ in range(processes)]
        codes = [p.wait() if p.communicate() else None for p in started]
        trials = bench.trials()
        yield {
            "part": "recommend at once", "processes": processes, "codes": codes,
            "trials": len(trials), "distinct": len(set(trials)), "alive": bench.after_two_seconds(),
            "same": len(trials) == len(set(trials)) == TRIALS and not any(codes),
            "leftovers": bench.temporary_files(),
        }  # fmt: skip
        arguments = ("train", plan, "--data", "digits", "--no-pretrained", "--epochs", "1",
                     "--device", "cpu", "--out", "shared")  # fmt: skip
        started = [bench.start(*arguments) for _ in range(processes)]
        texts = [p.communicate()[0] for p in started]
        codes = sorted(p.returncode for p in started)
        refusals = [t for t in texts if "is training into" in t or "holds a training already" in t]
        yield {
            "part": "train at once", "processes": processes, "codes": codes,
            "same": codes == [0] + [4] * (processes - 1) and len(refusals) == processes - 1,
            "alive": bench.after_two_seconds(), "leftovers": leftovers(bench.folder / "shared"),
        }  # fmt: skip
        shutil.rmtree(bench.folder / "shared")


def full_disk_part(bench: Bench, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Train and search on disks of a few sizes; a refusal is one line with exit code 4."""
    plan = str(next((bench.folder / "plans").rglob("*.json")).resolve())
    sizes = [rng.randint(64, 3000) for _ in range(count)]
    for kibibytes in sizes:
        with small_disk(bench.folder / "disk", kibibytes) as disk:
            for part, arguments in (
                ("train", ("train", plan, "--data", "digits", "--no-pretrained", "--epochs", "2",
                           "--device", "cpu", "--out", str(disk / "out"))),
                ("recommend", ("recommend", *SPACE, "--no-validate", "--storage",
                               f"sqlite:///{disk}/s.db", "--out", str(disk / "plans"))),
            ):  # fmt: skip
                code, text, _ = bench.run(*arguments)
                lines = [line for line in text.splitlines() if line.startswith("budgetplan: ")]
                drafts = [p.name for p in disk.rglob("*budgetplan-draft*")]
                yield {
                    "part": f"{part} on a small disk", "kibibytes": kibibytes, "code": code,
                    "line": lines[-1] if lines else "", "alive": bench.after_two_seconds(),
                    "same": code in (0, 4) and "internal error" not in text
                    and "Traceback" not in text,
                    "leftovers": drafts,
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


PARTS = {
    "recommend": recommend_part,
    "train": train_part,
    "validate": validate_part,
    "at_once": at_once_part,
    "full_disk": full_disk_part,
}


def is_good(row: dict[str, Any]) -> bool:
    return bool(row["same"]) and not row["alive"] and not row["leftovers"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=["crash_points", *PARTS])
    arguments = parser.parse_args()
    book = Rows(HERE)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name) / "work")
        if "crash_points" in arguments.only:
            made = rows(Path(name))
            book.append(*({"part": "crash point", "alive": 0, **row} for row in made))
        if {*arguments.only} & {*PARTS}:
            code, text, _ = bench.run("recommend", *SPACE, "--no-validate")
            assert code == 0, text
        for part in (p for p in PARTS if p in arguments.only):
            rng = random.Random(f"{arguments.seed}/{part}")
            for row in PARTS[part](bench, arguments.count, rng):
                book.append(row)
                print("ok " if is_good(row) else "BAD", json.dumps(row), flush=True)
    book.pack()
    summarise(book)


def summarise(book: Rows) -> None:
    """Write ``summary.json``: for each part the runs, and how many were as they should be."""
    found = book.read()
    parts = sorted({row["part"] for row in found})
    counts = {
        part: {
            "runs": sum(row["part"] == part for row in found),
            "good": sum(row["part"] == part and is_good(row) for row in found),
        }
        for part in parts
    }
    write_summary(HERE, found, parts=counts)


if __name__ == "__main__":
    main()
