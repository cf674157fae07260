"""What all studies share: raw rows with their provenance, kept once and compressed, and a summary.

A study's folder holds

    README.md        question, method, answer, how to run it
    run.py           the study
    PART.jsonl.gz    raw rows, one JSON object each, every one with the keys of ``PROVENANCE``
    PART.jsonl       rows of a run under way (not in git); ``Rows.pack`` moves them into the former
    summary.json     a few numbers, computed from the rows; the README quotes nothing else

A run that stops can go on: rows that are there already are not made again. Rows that were made
before this harness have null where it is unknown on which commit or machine they were made.
"""

from __future__ import annotations

import gzip
import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiler.timing.cpu_spread import TimedWork

ROOT = Path(__file__).parents[1]
PROVENANCE = ("schema", "commit", "torch", "timm", "processor", "gpu", "date")


@cache
def provenance(study: str) -> dict[str, str | None]:
    """Return on what a row of this process is made; ``-dirty`` marks a commit with changes on top.

    Args:
        study: name of the study's folder.
    """
    from importlib.metadata import version

    import torch

    from profiler.environment import processor_name

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "schema": f"budgetplan.study.{study}/2",
        "commit": _commit(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "processor": processor_name(),
        "gpu": gpu,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "planner", "profiler", "studies/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class Rows:
    """The raw rows of one part of a study.

    Args:
        folder: the study's folder.
        part: name of the part; a study may have several.
    """

    def __init__(self, folder: Path, part: str = "rows") -> None:
        self.study = folder.name
        self.packed = folder / f"{part}.jsonl.gz"
        self.open = folder / f"{part}.jsonl"

    def read(self) -> list[dict[str, Any]]:
        """Return every row, oldest first."""
        lines = gzip.decompress(self.packed.read_bytes()).decode() if self.packed.exists() else ""
        if self.open.exists():
            lines += self.open.read_text(encoding="utf-8")
        return [json.loads(line) for line in lines.splitlines()]

    def latest(self, key: str) -> dict[str, dict[str, Any]]:
        """Return the last row of each value of a key."""
        return {row[key]: row for row in self.read()}

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Add rows, each with the provenance of this process."""
        made = provenance(self.study)
        with self.open.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**made, **row}) + "\n" for row in rows)

    def clear(self) -> None:
        """Drop all rows, for a study that is always run whole."""
        self.write(())

    def pack(self) -> None:
        """Move the rows of a run into the compressed file."""
        if self.open.exists():
            self.write(self.read())

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all rows; equal rows give equal bytes."""
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        self.packed.write_bytes(gzip.compress(text.encode(), mtime=0))
        self.open.unlink(missing_ok=True)


def campaign(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many rows were made on which commits, versions, machines and days.

    ``one_commit`` is true if all rows are of one known commit: a campaign is run whole on one, or
    its summary says so here. ``null`` counts rows of which it is not known.
    """
    rows = list(rows)

    def counted(key: str) -> dict[str, int]:
        return dict(sorted(Counter(str(row.get(key) or "null") for row in rows).items()))

    counts = {key: counted(key) for key in PROVENANCE if key != "schema"}
    commits = counts["commit"]
    return {"rows": len(rows), "one_commit": len(commits) == 1 and "null" not in commits, **counts}


def write_summary(folder: Path, rows: Iterable[Mapping[str, Any]], **values: Any) -> None:
    """Write ``summary.json``: the campaign, then the numbers of the study."""
    schema = f"budgetplan.study.{folder.name}/2"
    text = json.dumps({"schema": schema, "campaign": campaign(rows), **values}, indent=1)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")


def write_cpu_spread(work: TimedWork, ratios: Sequence[float], *, cells: str, study: str) -> None:
    """Replace the row of a study in the product's ``cpu_spread.json``; other rows stay.

    Args:
        work: kind of run.
        ratios: 5th and 95th percentile of measured over predicted seconds.
        cells: number and kind of the cells, and their processors.
        study: name of the study's folder.
    """
    from profiler.timing.cpu_spread import CPU_SPREAD_FILE

    data = json.loads(CPU_SPREAD_FILE.read_text(encoding="utf-8"))
    data["spreads"][work] = {
        "low": ratios[0],
        "high": ratios[1],
        "coverage": 0.9,
        "measured_on": f"{cells}, one thread (studies/{study})",
    }
    CPU_SPREAD_FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
