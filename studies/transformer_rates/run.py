"""Learning rates of transformers by the width of the net.

    python studies/transformer_rates/run.py run [--minutes 10]   # makes rows that are missing
    python studies/transformer_rates/run.py report               # summary.json

The published rates are of nets with a width of 384 and 768. No package holds pretrained weights of
a transformer, so two are pretrained on rendered letters (``studies/probe/letters.py``) and carried
over to the digits: timm's ``test_vit2``, 64 wide, at 64 px, and ViT-Tiny, 192 wide, at 48 px. Each
method is trained for 300 steps on 640 images, at some rates, with the classifier's rate the same or
1e-2. On the silhouettes ViT-Tiny is trained at the default rates from before and after the study.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
PROBE = HERE.parent / "probe"
sys.path[:0] = [str(PROBE), str(HERE.parent), str(HERE.parents[1])]

import letters
from cases import Case, images_of, joined, learners_of
from harness import Rows, write_summary

from planner.training.probe_images import ProbeImages
from planner.training.probe_records import ProbeSetting
from planner.training.probe_run import ProbeRunner

STEPS, SEED = 300, 0

CLASSIFIER_RATE = 1e-2
"""Rate of a linear probe, which the classifier also gets in a part of the rows."""

RATES = {
    "full": (1e-4, 3e-4, 1e-3, 3e-3),
    "lora": (1e-3, 3e-3, 1e-2, 3e-2),
    "adaptformer": (1e-3, 3e-3, 1e-2),
    "bitfit": (1e-3, 3e-3, 1e-2),
    "ssf": (1e-3, 3e-3, 1e-2),
    "head": (1e-2, 3e-2),
}
"""Learning rates by method. ``full`` has ten times the rate at its classifier, as its recipe says."""

BEFORE_AND_AFTER = {
    "full": (1e-4, 6e-4),
    "lora": (1e-3, 2e-3),
    "adaptformer": (1e-3, 6e-3),
    "bitfit": (1e-3, 1e-2),
    "ssf": (1e-3, 1e-2),
    "head": (1e-2, 2e-2),
}
"""Default rates of ViT-Tiny before the rates on digits were known, and those taken then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A net that is pretrained on letters.

    Attributes:
        width: width of its tokens.
        image_size: side of the images in pixels.
        letter_steps: steps of the pretraining.
        letter_rate: its highest learning rate.
    """

    width: int
    image_size: int
    letter_steps: int
    letter_rate: float


NETS = {
    "test_vit2": Net(width=64, image_size=64, letter_steps=6000, letter_rate=1e-3),
    "vit_tiny_patch16_224": Net(width=192, image_size=48, letter_steps=4000, letter_rate=5e-4),
}


def wanted_rows() -> Iterator[dict[str, Any]]:
    """Yield what distinguishes each row."""
    for model in NETS:
        for method, rates in RATES.items():
            for rate in rates:
                common = {"model": model, "data": "digits", "method": method, "learning_rate": rate}
                yield common | {"classifier_rate": _classifier_rate(method, rate)}
                if method != "full" and rate < CLASSIFIER_RATE:
                    yield common | {"classifier_rate": CLASSIFIER_RATE}
    for method, rates in BEFORE_AND_AFTER.items():
        for rate in rates:
            yield {
                "model": "vit_tiny_patch16_224", "data": "animals", "method": method,
                "learning_rate": rate, "classifier_rate": _classifier_rate(method, rate),
            }  # fmt: skip


def _classifier_rate(method: str, rate: float) -> float:
    return 10 * rate if method == "full" else rate


class Trainings:
    """Trainings of a net on a data set.

    Args:
        model: name of the net.
        data: name of the data set.
        folder: folder of weights.
    """

    def __init__(self, model: str, data: str, folder: Path) -> None:
        net = NETS[model]
        weights = folder / f"{model}-{net.image_size}-{net.letter_steps}.safetensors"
        if not weights.exists():
            folder.mkdir(parents=True, exist_ok=True)
            right = letters.pretrain(
                model, weights, steps=net.letter_steps, image_size=net.image_size,
                learning_rate=net.letter_rate,
            )  # fmt: skip
            print(f"{model}, pretrained on letters: {100 * right:.1f} %", flush=True)
        case = Case(model=model, data=data, seed=SEED, steps=STEPS)
        train, held_out, test, images = images_of(case, image_size=net.image_size)
        self._held_out = len(held_out)
        both = joined(held_out, test)
        self._learners = learners_of(
            case, images.num_classes, methods=tuple(RATES), image_size=net.image_size
        )
        setting = ProbeSetting(
            data=data, weights=weights.name, model=model, image_size=net.image_size,
            train_images=len(train), held_out_images=len(both), device="cpu", seed=SEED,
        )  # fmt: skip
        self._runner = ProbeRunner(
            setting=setting,
            images=ProbeImages(train=train, held_out=both),
            weights=weights,
            pretrained=False,
            features_folder=folder / "features",
        )

    def train(self, *, method: str, learning_rate: float, classifier_rate: float) -> dict[str, Any]:
        """Return the accuracies after a training."""
        learner = self._learners[method]
        recipe = replace(
            learner.recipe,
            learning_rate=learning_rate,
            head_rate_ratio=classifier_rate / learning_rate,
        )
        name = f"{learner.name}, {learning_rate:g}, {classifier_rate:g}"
        run = self._runner.run(replace(learner, name=name, recipe=recipe), steps=STEPS, seed=SEED)
        assert run is not None
        right = run.right_images
        held_out, test = right[: self._held_out], right[self._held_out :]
        return {
            "diverged": run.diverged, "image_size": run.setting.image_size,
            "held_out_accuracy": round(float(held_out.mean()), 4), "held_out_images": len(held_out),
            "test_accuracy": round(float(test.mean()), 4), "test_images": len(test),
        }  # fmt: skip


def make_rows(rows: Rows, folder: Path, *, minutes: float) -> None:
    """Make missing rows for some minutes."""
    end = time.monotonic() + 60 * minutes
    known = [{k: row.get(k) for k in next(wanted_rows())} for row in rows.read()]
    trainings: dict[tuple[str, str], Trainings] = {}
    for wanted in wanted_rows():
        if wanted in known:
            continue
        if time.monotonic() > end:
            print("the time is over", flush=True)
            return
        on = wanted["model"], wanted["data"]
        if on not in trainings:
            trainings = {on: Trainings(*on, folder)}
        rest = {k: v for k, v in wanted.items() if k not in {"model", "data"}}
        found = trainings[on].train(**rest)
        rows.append(wanted | {"seed": SEED, "steps": STEPS} | found)
        print(rows.read()[-1], flush=True)


def main() -> None:
    """Make rows, or write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("run", "report"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "transformer-rates"
    )
    options = parser.parse_args()
    rows = Rows(HERE)
    if options.part == "run":
        make_rows(rows, options.folder, minutes=options.minutes)
        return
    rows.pack()
    shown = ("model", "data", "method", "learning_rate", "classifier_rate", "test_accuracy")
    write_summary(HERE, rows.read(), cells=[{k: row[k] for k in shown} for row in rows.read()])


if __name__ == "__main__":
    main()
