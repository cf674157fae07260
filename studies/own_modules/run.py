"""Is the memory of a stranger's module predicted as exactly as that of timm's classifiers?

    python studies/own_modules/run.py [--only NAME,NAME] [--report]

Every model of ``models.py`` (segmentation, detection heads, autoencoders, recurrent and text
models) is replayed by ``profiler.replay.module_replay`` and then really trained for two steps on
the CPU. The replayed peak is compared with the CPU allocator's account of the second step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from harness import Rows, write_summary
from models import MODELS

ROWS = Rows(HERE)
OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("fp32", "fp32", "bf16")
Row = dict[str, Any]


def run_model(name: str, index: int) -> Row:
    """Replay a model and run it; return both peaks."""
    import torch

    from profiler.devices.table import CPU
    from profiler.replay.module_replay import ModuleStep, replay_module

    torch.manual_seed(0)
    torch.set_num_threads(1)
    optimizer, precision = OPTIMIZERS[index % 2], PRECISIONS[index % 3]
    row: Row = {"model": name, "optimizer": optimizer, "precision": precision}
    step = ModuleStep(**MODELS[name](), optimizer=optimizer, precision=precision)
    replayed = replay_module(step, device=CPU).peak_bytes
    real = real_peak(name, optimizer=optimizer, precision=precision)
    return row | {
        "replayed_bytes": replayed,
        "real_bytes": real,
        "relative": replayed / real - 1,
    }


def real_peak(name: str, *, optimizer: str, precision: str) -> int:
    """Return the CPU allocator's peak over the second step of a real training."""
    import torch
    from torch.utils._pytree import tree_map

    from profiler.device_rules.cpu_allocator import peak_during
    from profiler.replay.module_replay import ModuleStep, module_optimizer

    held: list[Any] = []

    def prepare() -> None:
        torch.manual_seed(0)
        step = ModuleStep(**MODELS[name](), optimizer=optimizer, precision=precision)
        made = module_optimizer(step, step.module, foreach=False)
        shapes = step.batch
        object.__setattr__(step, "batch", None)  # the step makes a fresh one
        held.extend((step, made, tree_map(_description, shapes)))
        del shapes
        run()

    def run() -> None:
        step, made, described = held
        batch = tree_map(_remade, described, is_leaf=lambda leaf: isinstance(leaf, _Described))
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with torch.autocast("cpu", dtype=dtype, enabled=precision == "bf16"):
            loss = step.loss_of(step.module, batch)
        loss.backward()
        held_loss = loss.detach()
        del loss
        made.step()
        step.module.zero_grad(set_to_none=True)
        del held_loss, batch

    return peak_during(prepare, run)


class _Described:
    """Shape, dtype and largest value of a tensor of a batch."""

    def __init__(self, tensor: Any) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.most = int(tensor.max()) + 1


def _description(value: Any) -> Any:
    import torch

    return _Described(value) if isinstance(value, torch.Tensor) else value


def _remade(value: Any) -> Any:
    import torch

    if not isinstance(value, _Described):
        return value
    made = torch.empty(value.shape, dtype=value.dtype)
    return made.uniform_() if made.is_floating_point() else made.random_(0, value.most)


def report() -> None:
    """Write the summary."""
    rows = list(ROWS.latest("model").values())
    ran = [row for row in rows if "relative" in row]
    errors = sorted(abs(row["relative"]) for row in ran)
    write_summary(
        HERE,
        rows,
        models=len(ran),
        failed={row["model"]: row["failed"] for row in rows if "failed" in row},
        exact=sum(error == 0 for error in errors),
        within_half_a_percent=sum(error <= 0.005 for error in errors),
        median_relative=statistics.median(errors),
        beyond_half_a_percent={
            row["model"]: round(row["relative"], 4) for row in ran if abs(row["relative"]) > 0.005
        },
    )
    print((HERE / "summary.json").read_text(encoding="utf-8"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--report", action="store_true", help="only write summary.json")
    given = parser.parse_args()
    if not given.report:
        names = given.only.split(",")
        for name in names:
            try:
                row = run_model(name, list(MODELS).index(name))
            except Exception as error:
                row = {"model": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
            ROWS.append(row)
            print(row.get("failed") or f"{row['relative']:+.3%}", name, flush=True)
    ROWS.pack()
    report()


if __name__ == "__main__":
    main()
