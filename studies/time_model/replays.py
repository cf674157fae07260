"""Operations of the published runs: each model's step on fake tensors, kept in a cache folder.

A training row is replayed as a whole step without its update, with separate operations of
attention, because torch 1.12 had no fused attention. An inference row is one forward without
gradients and with fused attention. Equal operations are counted once.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from meta_steps import meta_step

from profiler.replay.event_log import OperationRecord
from profiler.replay.kernel_shapes import DIMENSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """A row of a published table.

    Attributes:
        table: name of the table's file, without its ending.
        model: timm name.
        batch: images in the step.
        image_size: pixels of a side.
        seconds: measured seconds of a step.
    """

    table: str
    model: str
    batch: int
    image_size: int
    seconds: float

    @property
    def key(self) -> str:
        """Key of the replay, which tables of one kind share."""
        kind = "train" if "train" in self.table else "infer"
        return f"{kind} {self.model} {self.batch} {self.image_size}"


def read_table(path: Path) -> list[PublishedRun]:
    """Return the rows of one of timm's benchmark tables."""
    kind = "train" if "train" in path.name else "infer"
    rows = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row[f"{kind}_step_time"]:
                continue
            rows.append(
                PublishedRun(
                    table=path.stem,
                    model=row["model"],
                    batch=int(row[f"{kind}_batch_size"]),
                    image_size=int(row[f"{kind}_img_size"]),
                    seconds=float(row[f"{kind}_step_time"]) / 1e3,
                )
            )
    return rows


@contextmanager
def fused_attention(is_on: bool) -> Iterator[None]:
    """Let timm build models with or without fused attention; its setting is restored."""
    from timm.layers import set_fused_attn, use_fused_attn

    was_on, on_trial = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(is_on)
    try:
        yield
    finally:
        set_fused_attn(was_on, experimental=on_trial)


def operations_of(run: PublishedRun) -> dict[str, Any]:
    """Replay a run; return its distinct operations and the parameters.

    Each operation is [phase, kind, kernel, dims, FLOPs, bytes, launches, count].
    """
    import timm

    training = "train" in run.table
    with fused_attention(not training), torch.device("meta"):
        model = timm.create_model(run.model, num_classes=1000).train(training)
    operations = meta_step(model, batch=run.batch, image_size=run.image_size, training=training)
    sizes = [p.numel() for p in model.parameters()]
    counts: Counter[tuple[Any, ...]] = Counter(_row(op) for op in operations)
    return {
        "key": run.key,
        "parameters": sum(sizes),
        "tensors": len(sizes),
        "operations": [[*row, count] for row, count in counts.items()],
    }


def _row(op: OperationRecord) -> tuple[Any, ...]:
    return (int(op.phase), op.kind, op.kernel, op.dims, op.flops, op.moved_bytes, op.launches)


def replay_all(runs: list[PublishedRun], cache: Path) -> None:
    """Replay every run that the cache lacks; a model that does not run is kept as an error."""
    known = {row["key"] for row in read_cache(cache)}
    for run in runs:
        if run.key in known:
            continue
        known.add(run.key)
        try:
            found = operations_of(run)
        except Exception as error:  # any model of the table may fail in today's timm
            found = {"key": run.key, "error": f"{type(error).__name__}: {error}"[:300]}
        with gzip.open(cache, "at", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def read_cache(cache: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the cached replays."""
    if cache.exists():
        with gzip.open(cache, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


__all__ = [
    "DIMENSIONS",
    "PublishedRun",
    "fused_attention",
    "operations_of",
    "read_cache",
    "read_table",
    "replay_all",
]
