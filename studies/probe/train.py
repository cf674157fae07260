"""Makes the trainings of the study, those that are missing, for a number of minutes.

python studies/probe/train.py [--minutes 4.5] [--model MODEL] [--seeds 3] [--folder FOLDER]

Every method of a case is trained for ``SHORT_STEPS`` and ``LONG_STEPS``. Cases are in the
order of ``all_cases``, so whatever the time allows is spread over nets and sets.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from cases import LONG_STEPS, METHODS, SEEDS, SHORT_STEPS, CaseRunner, all_cases, key_of
from harness import Rows


def main() -> None:
    """Make the missing trainings until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=4.5)
    parser.add_argument("--model", help="Only cases of this net.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="Only the first seeds.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "probe-study")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    rows = Rows(HERE, "trainings")
    for case in all_cases():
        if options.model not in (None, case.model) or case.seed >= options.seeds:
            continue
        known = {key_of(row) for row in rows.read()}
        wanted = [
            (m, s) for m in METHODS[case.model] for s in (*SHORT_STEPS, LONG_STEPS[case.model])
        ]
        base = {"model": case.model, "data": case.data, "seed": case.seed, "number": 0}
        if all(
            key_of({**base, "method": m, "steps": s, "rate_factor": 1.0}) in known
            for m, s in wanted
        ):
            continue
        runner = CaseRunner(case, rows, options.folder)
        for method, steps in wanted:
            if time.monotonic() > end:
                print("the time is over", flush=True)
                return
            runner.train(method, steps=steps)
    print("all trainings are made", flush=True)


if __name__ == "__main__":
    main()
