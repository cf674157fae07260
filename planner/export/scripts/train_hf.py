"""Train plan.json with transformers' Trainer: python train.py [--data FOLDER] [--weights FILE].

Written by `budgetplan export`. It is yours to change; it needs budgetplan and transformers. The
arguments of the Trainer are in training_arguments.json.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

# With several GPUs the Trainer would multiply the plan's batch by their number.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import torch
from transformers import TrainingArguments

from planner import apply_plan, load_backbone, load_images, load_plan
from planner.export.hf import PlanTrainer, WithLoss, accuracy, as_dataset
from profiler.errors import BudgetplanError

HERE = Path(__file__).parent


def main() -> None:
    """Train, evaluate on the test images and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with a sub-folder for each class")
    parser.add_argument("--weights", help="file of the backbone's weights")
    parser.add_argument("--no-pretrained", action="store_true", help="random weights")
    parser.add_argument("--steps", type=int, help="optimizer steps in all")
    given = parser.parse_args()

    plan = load_plan(HERE / "plan.json")
    options = json.loads((HERE / "training_arguments.json").read_text(encoding="utf-8"))
    if given.steps is not None:
        options["max_steps"] = given.steps
    if not torch.cuda.is_available():
        options["use_cpu"] = True
        if options["fp16"]:
            print("fp16 needs a GPU: this trains in fp32")
            options["fp16"] = False
    arguments = TrainingArguments(**options)
    images = load_images(plan, given.data)
    loaded = load_backbone(plan, weights=given.weights, pretrained=not given.no_pretrained)
    print(f"{loaded.weights.kind} weights: {loaded.weights.detail}")
    trainer = PlanTrainer(
        plan,
        WithLoss(apply_plan(loaded.model, plan), plan),
        new_classifier=loaded.has_new_classifier,
        args=arguments,
        train_dataset=as_dataset(images.train),
        eval_dataset=as_dataset(images.monitor),
        compute_metrics=accuracy,
    )
    trainer.train()
    found = trainer.evaluate(as_dataset(images.test), metric_key_prefix="test")
    print(f"{100 * found['test_accuracy']:.2f} % of the test images right")
    trainer.save_model(arguments.output_dir)


if __name__ == "__main__":
    try:
        main()
    except BudgetplanError as error:
        raise SystemExit(f"train.py: {error}") from None
