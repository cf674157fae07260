"""Makes the trainings of the study, those that are missing, for a number of minutes.

python studies/probe/train.py [--minutes 4] [--model MODEL ...] [--seeds 3] [--probe 0.5] [--random]

Every method of a case is trained for ``SHORT_STEPS`` and for its whole length. With ``--probe SHARE`` the
further trainings follow that the product's probe asks for (other learning rates, more steps, more
seeds) in this share of the time of all whole trainings. With ``--random`` only the whole trainings are
made, from random weights, as rows of their own. Cases are in the order of ``all_cases``, so
whatever the time allows is spread over nets and sets.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from cases import SEEDS, SHORT_STEPS, Case, CaseRunner, all_cases, key_of
from harness import Rows
from replayed import replay_probe, row_key
from run import complete_cases, probe_constants


def missing_trainings(case: Case, rows: Rows, share: float | None) -> Iterator[dict[str, Any]]:
    """Yield the missing trainings of a case as arguments of ``CaseRunner.train``.

    A training must be made before the next one is asked for.

    Args:
        case: the case.
        rows: rows of the study.
        share: time of the replayed probe over that of all whole trainings; None for no probe.
    """

    def made() -> dict[Any, dict[str, Any]]:
        key = (case.model, case.data, case.seed)
        mine = (r for r in rows.read() if (r["model"], r["data"], r["seed"]) == key)
        return {row_key(row): row for row in mine}

    found = made()
    for method in case.methods:
        for steps in (*SHORT_STEPS, case.steps):
            if (method, steps, 0, 1.0) not in found:
                yield {"method": method, "steps": steps}
    if share is None:
        return
    # The study replays a probe with the constants of several fits.
    cases = complete_cases(rows.read())
    fits = probe_constants(case, cases).values()
    while True:
        mine = made()
        replays = (replay_probe(mine, case, share=share, short_runs=fit) for fit in fits)
        planned = next((each.missing for each in replays if each.missing), None)
        if planned is None:
            return
        yield {
            "method": planned.learner.name, "steps": planned.steps, "number": planned.seed,
            "factor": planned.rate_factor,
        }  # fmt: skip


def missing_from_random(case: Case, rows: Rows) -> Iterator[dict[str, Any]]:
    """Yield the missing whole trainings from random weights, as ``missing_trainings`` does."""
    found = {key_of(row) for row in rows.read()}
    for method in case.methods:
        wanted = {"method": method, "steps": case.steps, "number": 0, "rate_factor": 1.0}
        if (
            key_of({"model": case.model, "data": case.data, "seed": case.seed, **wanted})
            not in found
        ):
            yield {"method": method, "steps": case.steps}


def main() -> None:
    """Make the missing trainings until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--model", action="append", help="Only cases of this net; repeatable.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="Only the first seeds.")
    parser.add_argument("--probe", type=float, help="Share of the time of all whole trainings.")
    parser.add_argument("--random", action="store_true", help="From random weights.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "probe-study")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    rows = Rows(HERE, "random_weights" if options.random else "trainings")
    for case in all_cases():
        if (options.model and case.model not in options.model) or case.seed >= options.seeds:
            continue
        runner: CaseRunner | None = None
        missing = (
            missing_from_random(case, rows)
            if options.random
            else missing_trainings(case, rows, options.probe)
        )
        for wanted in missing:
            if time.monotonic() > end:
                print("the time is over", flush=True)
                return
            runner = runner or CaseRunner(
                case, rows, options.folder, weights="random" if options.random else "pretrained"
            )
            runner.train(wanted.pop("method"), **wanted)
    print("all trainings are made", flush=True)


if __name__ == "__main__":
    main()
