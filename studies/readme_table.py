"""Writes the table of measured results in the project's README from the studies' summaries.

python studies/readme_table.py           # rewrite the table
python studies/readme_table.py --check   # fail if the README differs from the summaries
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STUDIES = Path(__file__).resolve().parent
README = STUDIES.parent / "README.md"
START, END = "<!-- results: written by studies/readme_table.py -->", "<!-- end -->"


def summary(study: str) -> dict[str, Any]:
    """Return a study's ``summary.json``."""
    found: dict[str, Any] = json.loads((STUDIES / study / "summary.json").read_text("utf-8"))
    return found


def percent(share: float, digits: int = 1) -> str:
    """Return a share as text."""
    return f"{100 * share:.{digits}f} %"


def rows() -> list[tuple[str, str, str]]:
    """Return (study, what was compared, result) of every line."""
    truth, hollow = summary("memory_truth"), summary("hollow_gpu")["all"]
    curves = summary("placement_curves")
    matrix, replay = summary("method_matrix"), summary("replay_cost")
    steps, other = summary("time_model")["steps"], summary("time_model")["inference"]
    at_64, at_96 = (recipe_accuracies(size) for size in (64, 96))
    claims = summary("efficiency_paper")
    offload = summary("offload")["table"]["full, state"]
    host = offload["smallest_budget_ratio"]
    added = curves["evaluator_vit_s_added_share"]
    rule = curves["evaluator_part_of_the_rule_at_43_percent_less"].values()
    near, wrong = near_the_budget()
    return [
        (
            "memory_truth",
            "predicted peak against the CPU allocator in a real step",
            f"{truth['cells']} steps: largest error {percent(truth['largest_relative'], 2)},"
            f" {truth['exact_cells']} equal to the byte",
        ),
        (
            "hollow_gpu",
            "predicted peak against PyTorch's own CUDA code, run without a GPU",
            f"{hollow['cells']} steps: largest error {percent(abs(hollow['peak']['largest']))},"
            f" {hollow['peak']['exact']} equal to the byte; of {near + wrong} steps near 2 GiB with"
            f" expandable segments, {wrong} were judged wrongly",
        ),
        (
            "placement_curves",
            "recompute time that a placement adds, ViT-S at 40 % of its peak",
            f"`optimal` {percent(added['optimal']['40%'])}, PyTorch's `sac_ilp`"
            f" {percent(added['sac_ilp']['40%'])}, lower bound"
            f" {percent(added[BOUND]['40%'])}",
        ),
        (
            "placement_curves",
            "time of `optimal` over that of the paper's adaptive rule, 43 % less memory",
            f"{min(rule):.2f} to {max(rule):.2f} on {len(rule)} models and methods",
        ),
        (
            "method_matrix",
            "small real runs of every method on every backbone",
            f"{matrix['counts']['works']} pairs work, {matrix['counts']['refused']} are refused with"
            f" a reason, {matrix['counts']['fails']} fail; a warm replay of ViT-S takes"
            f" {replay['seconds_by_batch']['64']:.2f} s",
        ),
        (
            "time_model",
            "predicted step time against published training runs on an RTX 3090 (fp16), model"
            " families left out of the fit",
            f"{steps['rows']} models: median error {percent(steps['median_error'])}, 90th"
            f" percentile {percent(steps['p90_error'])}; inference on an RTX 5090 that no fit saw:"
            f" {percent(other['rtx5090_from_rtx3090']['median_error'])}",
        ),
        (
            "recipes",
            "test accuracy on digits of plans of EfficientNet-Lite0, ImageNet weights, 4 epochs, 96 px,"
            " mean of three seeds",
            f"`full` {at_96['full']} %, `lora` {at_96['lora']} %, `bn_head` {at_96['bn_head']} %,"
            f" `bitfit` {at_96['bitfit']} %, `head` {at_96['head']} %; at 64 px, one seed, `full` by"
            f" the paper's recipe {at_64['full:paper']} %, from random weights"
            f" {at_64['full:random']} %",
        ),
        (
            "efficiency_paper",
            "claims of arXiv 2607.02158 about ViT-S, replayed and predicted",
            f"its rule at half of the budget: peak {spread(claims['memory'])}, energy"
            f" {spread(claims['energy'])}; BitFit's energy"
            f" {claims['energy']['methods']['bitfit 32']:+.0%}",
        ),
        (
            "offload",
            "smallest predicted budget of full training with AdamW's state in the host's memory,"
            " over that without",
            f"median {host[1]}, {host[0]} to {host[2]} ({offload['cells']} cells)",
        ),
    ]


BOUND = "bound, any operators"


def near_the_budget() -> tuple[int, int]:
    """Return the steps near 2 GiB judged rightly and wrongly, with the allocator as it is planned."""
    near = wrong = 0
    for name, device in summary("hollow_gpu")["devices"].items():
        if not name.endswith(".native"):
            fits = device["under_2_gib"]
            near += fits["said fits, fitted"] + fits["said no, ran out"]
            wrong += len(fits["said fits, ran out"]) + len(fits["said no, fitted"])
    return near, wrong


def recipe_accuracies(image_size: int) -> dict[str, float]:
    """Return the mean test accuracies in percent of EfficientNet-Lite0 on digits, by arm."""
    net = {"model": "tf_efficientnet_lite0", "data": "digits", "image_size": image_size}
    arms = summary("recipes")["arms"]
    return {a["arm"]: a["test_percent"] for a in arms if net.items() <= a.items()}


def spread(ratios: dict[str, dict[str, float]]) -> str:
    """Return the smallest and largest change by the paper's rule at half of the budget."""
    found = [change for name, change in ratios["rule"].items() if name.endswith("at 0.5")]
    return f"{min(found):+.0%} to {max(found):+.0%}"


def table() -> str:
    """Return the table as Markdown."""
    lines = ["| study | compared | result |", "|---|---|---|"]
    lines += [f"| [`{s}`](studies/{s}) | {what} | {result} |" for s, what, result in rows()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write or check the table."""
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(f"{START}\n")
    tail = rest[rest.index(END) :]
    wanted = f"{head}{START}\n{table()}{tail}"
    if "--check" in sys.argv and wanted != text:
        raise SystemExit("the README's table differs from the studies' summaries")
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
