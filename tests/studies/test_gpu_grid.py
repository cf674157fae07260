"""The grid covers its axes however early it stops, and the comparison says what was put in."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from profiler.devices.table import lookup, workspaces_of
from profiler.units import GIB, MIB
from profiler.workload import Workload

HERE = Path(__file__).parents[2] / "studies" / "gpu_grid"
STUDY_FOLDERS = ("gpu_grid",)


# --- the grid


def test_cells_are_distinct_and_always_the_same():
    from cells import grid

    cells = grid(80)
    assert len({cell.name for cell in cells}) == 80
    assert [cell.name for cell in grid(40)] == [cell.name for cell in cells[:40]]


def test_an_early_stop_leaves_every_axis_covered():
    from cells import BACKBONES, METHODS, OPTIMIZERS, PLACEMENTS, PRECISIONS, grid

    cells = grid(240)
    forty = [cell.values for cell in cells[:40]]
    for position, wanted in enumerate((BACKBONES, METHODS, PLACEMENTS, PRECISIONS, OPTIMIZERS)):
        assert {values[position] for values in forty} == set(wanted)

    def pairs(chosen: list[Any]) -> set[Any]:
        return {p for cell in chosen for p in combinations(enumerate(cell.values), 2)}

    drawn_blindly = pairs(random.Random(1).sample(cells, 80))
    assert len(pairs(cells[:80])) > len(drawn_blindly)
    assert len(pairs(cells[:120])) > 0.9 * len(pairs(cells))


def test_a_cell_survives_a_file():
    from cells import Cell, grid

    for cell in grid(5):
        assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_the_largest_fitting_batch_is_that_of_a_search_one_by_one():
    from cells import largest_fitting

    rng = random.Random(0)
    for _ in range(200):
        sizes = sorted(rng.randrange(1000) for _ in range(rng.randrange(1, 40)))
        cap = rng.randrange(1000)

        def reserved(batch: int, sizes: list[int] = sizes) -> int:
            return sizes[batch - 1]

        expected = max((b for b, size in enumerate(sizes, 1) if size <= cap), default=0)
        assert largest_fitting(reserved, cap_bytes=cap, most=len(sizes)) == expected


def test_brim_cells_come_between_the_others():
    from cells import grid
    from run import BRIM_EVERY, order

    cells = grid(20)
    mixed = order(cells[: 2 * BRIM_EVERY], cells[-3:])
    assert mixed[BRIM_EVERY] is cells[-3] and mixed[2 * BRIM_EVERY + 1] is cells[-2]
    assert Counter(c.name for c in mixed) == Counter(
        c.name for c in [*cells[: 2 * BRIM_EVERY], *cells[-3:]]
    )


# --- histories of the allocator


def entry(action: str, addr: int, size: int) -> dict[str, Any]:
    return {"action": action, "addr": addr, "size": size}


HISTORY = [
    entry("segment_alloc", 0, 20 * MIB),
    entry("alloc", 0, 3 * MIB),
    entry("free_requested", 0, 3 * MIB),
    entry("free_completed", 0, 3 * MIB),
    entry("alloc", 0, 2 * MIB),  # steady from here; the same address again
    entry("segment_alloc", 100, 20 * MIB),
    entry("alloc", 100, 19 * MIB),  # does not fit beside the 2 MiB
    entry("free_completed", 0, 2 * MIB),
    entry("free_completed", 999, 1),  # born before the recording
]


def test_a_history_becomes_numbers():
    from run import encode_history

    assert encode_history(HISTORY, mark=4) == {
        "events": [3 * MIB, -1, 2 * MIB, 19 * MIB, -2],
        "segments": [(0, 20 * MIB), (3, 20 * MIB)],
        "steady_from": 2,
    }


def test_the_allocators_model_reserves_what_the_history_did():
    from compare import differing_sizes, modelled_history
    from run import encode_history

    trace = encode_history(HISTORY, mark=4)
    assert modelled_history(trace) == {
        "real_reserved": 40 * MIB,
        "modelled_reserved": 40 * MIB,
    }
    assert differing_sizes(trace, Counter({2 * MIB: 2})) == {
        "only_real": [(19 * MIB, 1)],
        "only_replayed": [(2 * MIB, 1)],
    }


# --- the comparison


def measured(name: str, peak: int, predicted: int, **more: Any) -> dict[str, Any]:
    workload = Workload(model="vit_t").to_json()
    row = {
        "cell": name,
        "extra": "plain",
        "workload": workload,
        "placement": {"policy": "none"},
        "memory": {"peak": peak, "reserved": peak},
        "predicted": {"peak": predicted, "reserved": predicted, "fits_cap": predicted <= 2 * GIB},
    }
    return row | more


def test_errors_are_signed_and_sorted():
    from compare import cell_errors

    found = cell_errors([measured("a", 100, 101), measured("b", 100, 90), measured("c", 100, 103)])
    peak = found["peak"]
    assert (peak["cells"], peak["within_2_percent"], peak["within_5_percent"]) == (3, 1, 2)
    assert peak["median"] == pytest.approx(0.03) and peak["worst"] == pytest.approx(0.10)
    assert [bad["cell"] for bad in peak["beyond_2_percent"]] == ["b", "c"]
    assert peak["median_signed_by"]["model"]["vit_t"] == pytest.approx(0.01)


def test_a_broken_promise_is_named():
    from compare import promise

    def capped(name: str, predicted: int, *, ran_out: bool) -> dict[str, Any]:
        return measured(
            name, 2 * GIB, predicted, capped={"out_of_memory": ran_out, "retries": int(ran_out)}
        )

    found = promise(
        [
            capped("kept", GIB, ran_out=False),
            capped("broken", GIB, ran_out=True),
            capped("too careful", 3 * GIB, ran_out=False),
            capped("rightly refused", 3 * GIB, ran_out=True),
            measured("not tested", GIB, GIB),
        ]
    )
    assert found["tested"] == 4
    assert found["reserved bytes"] == {
        "said fits, fitted": 1,
        "said fits, ran out": ["broken"],
        "said no, fitted": ["too careful"],
        "said no, ran out": 1,
    }
    assert found["needed retries"] == ["broken", "rightly refused"]


def test_made_up_results_are_found_again(tmp_path: Path):
    """Bytes 4 % above the replay's, time three times the roofline: the comparison says so."""
    from cells import Cell, units_of
    from compare import compare, predict_row
    from probes import replay_probe
    from run import Book, collect, encode_history

    book = Book(tmp_path / "grid.jsonl")
    book.write("environment", {"gpu": "made up", "device": "h200", "context_bytes": 1})
    workspace = 64 * MIB
    stages = replay_probe("linear with bias", lookup("h200"))
    cold = {s: {k: v + workspace // 2 for k, v in stages[s].items()} for s in stages}
    book.write("probe", {"probe": "linear with bias", "cold": cold, "warm": stages})
    for batch in (1, 2, 3, 4):
        load = Workload(model="vit_t", method="head", micro_batch=batch, image_size=224)
        cell = Cell(workload=load, placement="none")
        data = cell.candidate(units_of(load.model, load.image_size)).to_json()
        ours = predict_row(data, device="h200")
        book.write(
            "cell",
            {"cell": cell.name, "extra": "plain", **data}
            | {
                "memory": {
                    "peak": round(ours["peak"] / 1.04),
                    "reserved": ours["reserved"],
                    "outside": 300 * MIB,
                },
                "energy": {"seconds": 30 * ours["seconds"], "steps": 10, "joules": 10.0 * batch},
                "trace": encode_history(HISTORY, mark=4),
            },
        )
    book.write("cell", {"cell": "broken", "failed": "RuntimeError: made up"})
    found = compare(collect(tmp_path), device=None, limit=None, processes=1)
    assert found["cells"]["peak"]["median"] == pytest.approx(0.04, abs=1e-3)
    assert found["cells"]["reserved"]["worst"] == 0
    assert found["time"][0]["median"] == pytest.approx(3.0)
    assert found["failed"] == [{"cell": "broken", "reason": "RuntimeError: made up"}]
    modelled = sum(workspaces_of(lookup("h200")))
    assert found["workspace"] == {"modelled": modelled, "probed": workspace}
    assert [p["kept_when_cold"] for p in found["probes"]] == [workspace // 2] * 2
    assert len(found["histories"]) == 4
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["promise"]["tested"] == 0
    from calibration import Calibration

    fit = Calibration.load(tmp_path / "calibration.json").time[0]
    assert (fit.kind, fit.precision, fit.runs) == ("attention", "fp32", 4)
    with gzip.open(tmp_path / "grid.traces.jsonl.gz", "rt") as file:
        assert len(file.readlines()) == 4
