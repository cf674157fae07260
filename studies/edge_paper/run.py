"""The claims of "From LLMs to Edge" (arXiv 2507.23536), counted again on fake tensors.

python studies/edge_paper/run.py    writes rows.jsonl.gz and summary.json, and prints the claims as rows
                                    of a table

Three models, one 224 x 224 image, fp32, AdamW, rank 4 (the set-up of the paper). Methods:

    full, bn_head, galore       as the program has them
    lora, dora                  as the program has them: adapters, and the classifier learns
    lora_only, dora_only        what the paper's numbers fit: adapters, the classifier's too, alone
    full_sgd                    full with SGD and momentum, to tell the paper's optimizer

Each is counted twice:

    as published   memory: for each owner the most it ever holds, summed; FLOPs: the paper's counter
    correct        memory: the true peak; FLOPs: groups divided, matmuls and convolutions
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, write_summary

from profiler.devices.table import CPU
from profiler.models import backbones
from profiler.models.backbones import WeightSource
from profiler.models.backbones.timm_interface import classifier_names
from profiler.models.build import BuiltModel, build_model
from profiler.models.checkpointable_units import find_units
from profiler.models.methods import get_method
from profiler.models.methods.galore import UPDATE_GAP, projected
from profiler.models.methods.lowrank import Dora, Lora
from profiler.records import OWNERS
from profiler.replay.event_log import Phase
from profiler.replay.step_replay import replay_built_model
from profiler.units import MIB
from profiler.workload import Candidate, Workload

HERE = Path(__file__).parent
V2, V3, RESNET = "mobilenetv2_100", "mobilenetv3_large_100", "resnet18"
MODELS = (V2, V3, RESNET)
METHODS = ("full", "bn_head", "lora", "lora_only", "dora", "dora_only", "galore", "full_sgd")
RANKS = (4, 8, 16, 32)


class LoraOnly(Lora):
    """Adapters on the classifier as on the rest; nothing else learns."""

    def lora_arguments(self, model: torch.nn.Module, workload: Workload) -> dict[str, Any]:
        """Put the classifier among the targets."""
        arguments = super().lora_arguments(model, workload)
        targets = [*arguments["target_modules"], *classifier_names(model)]
        return arguments | {"target_modules": targets, "modules_to_save": None}


class DoraOnly(LoraOnly, Dora):
    """The same for DoRA."""


ONLY = {"lora_only": (LoraOnly, "lora"), "dora_only": (DoraOnly, "dora")}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model, method and rank. Bytes and FLOPs of one step."""

    sum_of_maxima: int
    peak: int
    max_by_owner: dict[str, int]
    published: dict[str, int]
    correct: dict[str, int]

    def memory(self, rule: str) -> int:
        """Return bytes by a rule."""
        return self.sum_of_maxima if rule == "published" else self.peak

    def flops(self, rule: str) -> dict[str, int]:
        """Return FLOPs of each phase by a rule."""
        return self.published if rule == "published" else self.correct

    def total(self, rule: str) -> int:
        """Return FLOPs of the step by a rule."""
        return sum(self.flops(rule).values())


def workload(model: str, method: str, rank: int) -> Workload:
    plain = {"full_sgd": "full", "lora_only": "lora", "dora_only": "dora"}.get(method, method)
    has_rank = plain in ("lora", "dora", "galore")
    return Workload(
        model=model,
        method=plain,
        rank=rank if has_rank else None,
        micro_batch=1,
        optimizer="sgd" if method == "full_sgd" else "adamw",
    )


def model_of(load: Workload, method: str) -> BuiltModel:
    if method not in ONLY:
        return build_model(load, device="meta")
    kind, name = ONLY[method]
    backbone = backbones.build(load.model, num_classes=1000, image_size=224, device="meta")
    units, own = find_units(backbone), kind(get_method(name).info)
    source = WeightSource(kind="random", detail="shapes only")
    model = own.apply(backbone, load)
    return BuiltModel(model=model, name=load.model, method=own, units=units, weights=source)


@cache
def cell(model: str, method: str, rank: int = 4) -> Cell:
    load = workload(model, method, rank)
    candidate = Candidate(workload=load)
    logs = {
        rule: replay_built_model(
            model_of(load, method),
            candidate,
            device=CPU,
            published_flops=rule == "published",
        )
        for rule in ("published", "correct")
    }
    log = logs["correct"]
    highest = {name: getattr(log.max_by_owner(), name) for name in OWNERS}
    phases = {"forward": Phase.FORWARD, "backward": Phase.BACKWARD, "optimizer": Phase.OPTIMIZER}
    counted = {
        rule: {name: each.flops(phase) for name, phase in phases.items()}
        for rule, each in logs.items()
    }
    return Cell(
        sum_of_maxima=sum(highest.values()), peak=log.peak_bytes, max_by_owner=highest, **counted
    )


# --- quantities the claims are about --------------------------------------------------------------


def saved(model: str, method: str, rule: str) -> float:
    return 1 - cell(model, method).memory(rule) / cell(model, "full").memory(rule)


def fewer(model: str, method: str, rule: str, phase: str = "backward") -> float:
    return 1 - cell(model, method).flops(rule)[phase] / cell(model, "full").flops(rule)[phase]


def fewer_in_all(model: str, method: str, rule: str) -> float:
    return 1 - cell(model, method).total(rule) / cell(model, "full").total(rule)


def ratio(model: str, method: str, rule: str) -> float:
    flops = cell(model, method).flops(rule)
    return flops["backward"] / flops["forward"]


def above(model: str, method: str, other: str, rule: str) -> float:
    return cell(model, method).memory(rule) / cell(model, other).memory(rule) - 1


def state(model: str, method: str) -> int:
    return cell(model, method).max_by_owner["optimizer"]


def decomposition_flops(model: str) -> int:
    """A thin SVD of every projected gradient: 6 m n^2 + 20 n^3 (R-SVD, Golub & Van Loan, 5.4)."""
    parameters = build_model(workload(model, "galore", 4), device="meta").model.parameters()
    total = 0
    for parameter in parameters:
        if projected(parameter, 4):
            n, m = sorted((parameter.shape[0], parameter.numel() // parameter.shape[0]))
            total += 6 * m * n * n + 20 * n**3
    return total


def slope(values: list[int]) -> tuple[float, float]:
    """Growth per rank, and the largest deviation from a line as a share of the growth."""
    line = np.polyfit(RANKS, values, 1)
    off = np.abs(np.polyval(line, RANKS) - values).max()
    return float(line[0]), float(off / max(values[-1] - values[0], 1))


# --- the claims -----------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def percents(values: list[float]) -> str:
    return " / ".join(percent(v) for v in values)


def numbers(values: list[float]) -> str:
    return " / ".join(f"{v:.2f}" for v in values)


def forward(model: str, rule: str) -> int:
    return cell(model, "full").flops(rule)["forward"]


def step(model: str, rule: str) -> int:
    return cell(model, "full").total(rule)


def both(text: Any) -> tuple[str, str]:
    return text("published"), text("correct")


def claims() -> list[tuple[str, str, str, str, str]]:
    """Return (number, claim, published, ours as published, ours correct)."""
    rows: list[tuple[str, str, str, str, str]] = []

    def add(number: str, what: str, published: str, ours: tuple[str, str]) -> None:
        rows.append((number, what, published, *ours))

    peft_methods = ("lora_only", "dora_only")
    add(
        "1",
        "PEFT's cut of a model update's FLOPs on depthwise CNNs (backward), V2 / V3",
        "up to 95 %",
        both(lambda r: percents([max(fewer(m, k, r) for k in peft_methods) for m in (V2, V3)])),
    )
    add(
        "2",
        "FLOPs saved by LoRA / DoRA, whole step, MobileNetV3",
        "80 %",
        both(lambda r: percents([fewer_in_all(V3, k, r) for k in peft_methods])),
    )
    add(
        "3",
        "the same, ResNet-18 (backward alone in brackets)",
        "about 57 %",
        both(
            lambda r: (
                f"{percents([fewer_in_all(RESNET, k, r) for k in peft_methods])}"
                f" ({percents([fewer(RESNET, k, r) for k in peft_methods])})"
            )
        ),
    )
    add(
        "4",
        "backward : forward, full, V2 / V3",
        "about 20 : 1",
        both(lambda r: " / ".join(f"{ratio(m, 'full', r):.1f}" for m in (V2, V3))),
    )
    add(
        "5",
        "backward : forward, LoRA, V2 / V3 (DoRA in brackets)",
        "about 1.2 : 1",
        both(
            lambda r: (
                numbers([ratio(m, "lora_only", r) for m in (V2, V3)])
                + f" ({numbers([ratio(m, 'dora_only', r) for m in (V2, V3)])})"
            )
        ),
    )
    add(
        "6",
        "backward : forward, full, ResNet-18",
        "about 2 : 1",
        both(lambda r: f"{ratio(RESNET, 'full', r):.2f}"),
    )
    add(
        "7",
        "ResNet-18's forward over V2's / V3's (whole full step in brackets)",
        "more than 10 x",
        both(
            lambda r: (
                numbers([forward(RESNET, r) / forward(m, r) for m in (V2, V3)])
                + f" ({numbers([step(RESNET, r) / step(m, r) for m in (V2, V3)])})"
            )
        ),
    )
    add(
        "8",
        "GaLore's FLOPs above full, without decompositions"
        f" (with one every {UPDATE_GAP} steps; one every step), V2 / V3 / ResNet-18",
        "10-30 %",
        both(lambda r: " / ".join(galore_overhead(m, r) for m in MODELS)),
    )
    for number, published, model, method in (
        ("9", "-85 %", V2, "bn_head"),
        ("10", "-52 %", V3, "bn_head"),
        ("11", "-67 %", RESNET, "lora_only"),
        ("12", "-22 %", V2, "lora_only"),
        ("13", "-48 %", V3, "lora_only"),
    ):
        add(
            number,
            f"peak memory against full, {model}, {method}",
            published,
            both(lambda r, m=model, k=method: percent(-saved(m, k, r))),
        )
    add(
        "14",
        "DoRA's memory above LoRA's, V2",
        "+49-51 %",
        both(lambda r: percent(above(V2, "dora_only", "lora_only", r))),
    )
    add(
        "15",
        "DoRA's memory above LoRA's, V3 / ResNet-18",
        "+29 % / +58 %",
        both(lambda r: percents([above(m, "dora_only", "lora_only", r) for m in (V3, RESNET)])),
    )
    states = percents([state(m, "galore") / state(m, "full") - 1 for m in MODELS])
    add("16", "GaLore's optimizer state, V2 / V3 / ResNet-18", "-65 % on average", (states, states))
    add(
        "17",
        "GaLore's total memory, V2 / V3",
        "-5 to -10 %",
        both(lambda r: percents([-saved(m, "galore", r) for m in (V2, V3)])),
    )
    shares = percents([state(m, "lora_only") / state(m, "galore") for m in MODELS])
    add("18", "LoRA's optimizer state over GaLore's", "about 10 %", (shares, shares))
    add(
        "19",
        "GaLore over LoRA, memory; FLOPs, V2 / V3 / ResNet-18",
        "1.13-2 x; 2-20 x",
        both(
            lambda r: "; ".join(
                " / ".join(f"{over(m, r):.2f}" for m in MODELS)
                for over in (more_memory, more_flops)
            )
        ),
    )
    add(
        "20",
        "LoRA's share saved: mean of the MobileNets over ResNet-18 (the paper: over LLMs)",
        "about half",
        both(
            lambda r: numbers(
                [mean(saved(m, "lora_only", r) for m in (V2, V3)) / saved(RESNET, "lora_only", r)]
            )
        ),
    )
    add("21", *rank_claim())
    add("22", "accuracy gaps between methods", "up to 40 points", ("not run", "not run"))
    add("23", "LoRA needs twice GaLore's iterations", "about 2 x", ("not run", "not run"))
    return rows


def galore_overhead(model: str, rule: str) -> str:
    plain, full = cell(model, "galore").total(rule), cell(model, "full").total(rule)
    once = decomposition_flops(model)
    each = [percent((plain + extra) / full - 1) for extra in (0, once / UPDATE_GAP, once)]
    return f"{each[0]} ({each[1]}; {each[2]})"


def more_memory(model: str, rule: str) -> float:
    return above(model, "galore", "lora_only", rule) + 1


def more_flops(model: str, rule: str) -> float:
    return cell(model, "galore").total(rule) / cell(model, "lora_only").total(rule)


def rank_claim() -> tuple[str, str, tuple[str, str]]:
    def grown(method: str, rule: str) -> tuple[float, float, float]:
        cells = [cell(V2, method, rank) for rank in RANKS]
        flops, bent = slope([c.total(rule) for c in cells])
        nbytes, bent_too = slope([c.memory(rule) for c in cells])
        return flops, nbytes, max(bent, bent_too)

    def text(rule: str) -> str:
        lora, dora, galore = (grown(m, rule) for m in ("lora_only", "dora_only", "galore"))
        bent = max(each[2] for each in (lora, dora, galore))
        return (
            f"off a line by at most {percent(bent)}; FLOPs {galore[0] / lora[0]:.2f} x LoRA's; "
            f"memory LoRA {lora[1] / galore[1]:.1f} x, DoRA {dora[1] / galore[1]:.1f} x GaLore's"
        )

    return (
        f"growth with the rank ({RANKS[0]}-{RANKS[-1]}), V2",
        "linear; GaLore's FLOPs about 9 x faster; LoRA's and DoRA's memory 2-4 x steeper",
        both(text),
    )


def cells() -> dict[str, dict[str, Any]]:
    out = {}
    for model in MODELS:
        for method in METHODS:
            one = cell(model, method)
            out[f"{model} {method}"] = {
                "sum_of_maxima_bytes": one.sum_of_maxima,
                "peak_bytes": one.peak,
                "max_by_owner_bytes": one.max_by_owner,
                "flops_as_published": one.published,
                "flops": one.correct,
            }
            print(
                model, method, f"{one.sum_of_maxima / MIB:.1f} {one.peak / MIB:.1f} MiB", flush=True
            )
    return out


def main() -> None:
    measured, rows = cells(), claims()
    names = ("number", "claim", "published", "ours_as_published", "ours_correct")
    table = [dict(zip(names, row, strict=True)) for row in rows]
    book = Rows(HERE)
    book.clear()
    book.append(
        *({"part": "cell", "cell": name, **values} for name, values in measured.items()),
        *({"part": "claim", **claim} for claim in table),
    )
    book.pack()
    write_summary(HERE, book.read(), claims=len(table), peft=version("peft"))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
