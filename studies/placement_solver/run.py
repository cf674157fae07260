"""How long the placement solver takes, and what it proves, on chains made to be hard.

python studies/placement_solver/run.py [--chains N] [--milp]  writes rows.jsonl.gz and summary.json.

Five families of chains; in all, stored bytes of an option are uniform in 1..300 MB:

    repeated      one random menu, n times (a transformer)
    random        seconds independent of bytes
    proportional  seconds = bytes freed / bandwidth, +-20 % (convolutional stages)
    fixed-charge  seconds = bytes freed / bandwidth + a constant: the textbook's strongly correlated
                  knapsacks, hard for every bound
    exact         seconds = bytes freed / bandwidth, to the last digit: a subset-sum problem
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
from numpy.random import Generator
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, write_summary

from planner.placement.chain import Chain, ChainOption, ChainUnit
from planner.placement.chain_cost import chain_arrays, peak_bytes
from planner.placement.optimal import SolutionStatus, smallest_feasible, solve
from profiler.placement import Decision

HERE = Path(__file__).parent
FAMILIES = ("repeated", "random", "proportional", "fixed-charge", "exact")
SIZES = ((12, 4), (12, 20), (25, 4), (25, 20), (50, 4), (100, 2), (100, 4), (100, 20), (200, 4))
SHARES = (0.1, 0.3, 0.6, 0.9)  # of the way from the smallest feasible peak to keeping everything
SECONDS_PER_BYTE = 1e-3 / 3e8
FIXED_SECONDS = 1e-4


def menu(family: str, k: int, rng: Generator) -> tuple[ChainOption, ...]:
    stored = np.sort(rng.integers(10**6, 3 * 10**8, k))[::-1]
    freed = (stored[0] - stored) * SECONDS_PER_BYTE
    seconds = {
        "repeated": np.sort(rng.random(k)) * 1e-3,
        "random": np.sort(rng.random(k)) * 1e-3,
        "proportional": freed * rng.uniform(0.8, 1.2, k),
        "fixed-charge": freed + FIXED_SECONDS,
        "exact": freed,
    }[family]
    seconds[0] = 0.0
    names = [Decision.KEEP, Decision.RECOMPUTE, Decision.DROP_CHEAP]
    options = []
    for o in range(k):
        work = int(rng.integers(0, 5 * 10**7))
        options.append(
            ChainOption(
                decision=names[o] if o < len(names) else Decision.KEEP,
                parts={} if o < len(names) else {f"part{o}": Decision.DROP_CHEAP},
                stored_bytes=int(stored[o]),
                forward_bytes=int(stored[0]) + work // 2,
                backward_bytes=int(stored[0]) + work,
                recompute_seconds=float(seconds[o]),
            )
        )
    return tuple(options)


def chain_of(family: str, n: int, k: int, rng: Generator) -> Chain:
    one = menu(family, k, rng)
    units = tuple(
        ChainUnit(
            name=f"u{i}",
            options=one if family == "repeated" else menu(family, k, rng),
            gradient_bytes=int(rng.integers(0, 10**7)),
            boundary_bytes=10**6,
        )
        for i in range(n)
    )
    return Chain(units=units, static_bytes=10**8)


def budgets_of(chain: Chain, *, segments: bool) -> list[int]:
    least = smallest_feasible(chain, segments=segments).smallest_feasible_bytes
    most = peak_bytes(chain, [0] * len(chain.units))
    return [int(least + share * (most - least)) for share in SHARES]


def time_solver(family: str, n: int, k: int, chains: int, *, segments: bool) -> dict[str, object]:
    rng = np.random.default_rng(n * 100 + k)
    cpu, wall, gaps = [], [], []
    for _ in range(chains):
        chain = chain_of(family, n, k, rng)
        for budget in budgets_of(chain, segments=segments):
            began = time.process_time(), time.perf_counter()
            found = solve(chain, budget, segments=segments)
            cpu.append(time.process_time() - began[0])
            wall.append(time.perf_counter() - began[1])
            proved = found.status is SolutionStatus.OPTIMAL
            gaps.append(0.0 if proved else 1 - found.bound_seconds / found.recompute_seconds)
    return {
        "family": family,
        "units": n,
        "options": k,
        "segments": segments,
        "problems": len(cpu),
        "proved_optimal": sum(gap == 0 for gap in gaps),
        "worst_relative_gap": max(gaps),
        "cpu_seconds_median": statistics.median(cpu),
        "cpu_seconds_max": max(cpu),
        "wall_seconds_median": statistics.median(wall),
        "cpu_seconds": cpu,
    }


def time_milp(family: str, n: int, k: int, limit_seconds: float) -> dict[str, object]:
    """Solve the same problems with HiGHS: one binary variable per option."""
    rng = np.random.default_rng(n * 100 + k)
    chain = chain_of(family, n, k, rng)
    t = chain_arrays(chain)
    unit = np.repeat(np.arange(n), k)
    at = (unit, np.tile(np.arange(k), n))
    need = chain.static_bytes + np.maximum(t.forward, t.gradients_after[:, None] + t.backward)
    earlier = np.array([[i, c] for i in range(n) for c in np.flatnonzero(unit < i)]).T
    own = (unit, np.arange(n * k))
    rows, columns = np.concatenate([earlier, own], axis=1)
    mib = np.concatenate([t.stored[at][earlier[1]], need[at]]) / 2**20
    peak = coo_array((mib, (rows, columns)), shape=(n, n * k)).tocsc()
    one = coo_array((np.ones(n * k), own), shape=(n, n * k)).tocsc()
    trials = []
    for budget in budgets_of(chain, segments=False):
        began = time.process_time()
        result = milp(
            t.seconds[at] * 1e3,
            integrality=np.ones(n * k),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(peak, ub=budget / 2**20), LinearConstraint(one, 1, 1)],
            options={"mip_rel_gap": 1e-9, "time_limit": limit_seconds},
        )
        took = time.process_time() - began
        ours = solve(chain, budget, segments=False)
        trials.append(
            {
                "cpu_seconds": took,
                "proved_optimal": result.status == 0,
                "milp_milliseconds_added": result.fun,
                "our_milliseconds_added": ours.recompute_seconds * 1e3,
                "our_status": ours.status.value,
            }
        )
    return {"family": family, "units": n, "options": k, "trials": trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=5, help="chains of each kind")
    parser.add_argument("--milp", action="store_true", help="run HiGHS on the same problems")
    arguments = parser.parse_args()

    runs = []
    for family in FAMILIES:
        for n, k in SIZES:
            runs.append(time_solver(family, n, k, arguments.chains, segments=False))
        runs.append(time_solver(family, 25, 4, arguments.chains, segments=True))
        runs.append(time_solver(family, 100, 4, arguments.chains, segments=True))
        for run in runs[-len(SIZES) - 2 :]:
            print(
                f"{run['family']:13s}{run['units']:4d} x{run['options']:3d}"
                f"{' with segments' if run['segments'] else '':15s}"
                f"{run['cpu_seconds_median'] * 1e3:8.1f} ms, at most"
                f"{run['cpu_seconds_max'] * 1e3:8.1f} ms"
                f"{run['proved_optimal']:4d}/{run['problems']} proved"
                f"   gap {run['worst_relative_gap']:.1e}",
                flush=True,
            )
    on = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "load": os.getloadavg()[0],
    }
    book = Rows(HERE)
    book.clear()
    book.append(*({"part": "solver", **on, **run} for run in runs))
    if arguments.milp:
        book.append(*({"part": "milp", **on, **time_milp(f, 100, 4, 20.0)} for f in FAMILIES[1:4]))
    book.pack()
    summarise(book)


def summarise(book: Rows) -> None:
    """Write ``summary.json``."""
    found = book.read()
    runs = [row for row in found if row["part"] == "solver"]
    write_summary(
        HERE,
        found,
        problems=sum(run["problems"] for run in runs),
        proved_optimal=sum(run["proved_optimal"] for run in runs),
        worst_relative_gap=max(run["worst_relative_gap"] for run in runs),
        cpu_seconds_median_by_units_and_options={
            f"{n} x {k}": statistics.median(
                run["cpu_seconds_median"]
                for run in runs
                if (run["units"], run["options"]) == (n, k)
            )
            for n, k in SIZES
        },
        cpu_seconds_max=max(run["cpu_seconds_max"] for run in runs),
    )


if __name__ == "__main__":
    main()
