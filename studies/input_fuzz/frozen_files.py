"""Mutants of files without fine-tuning: plans, records of probes, class names, lists of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from random import Random

import numpy as np
from json_mutants import JsonMutator
from outcome import FaultError
from rich.console import Console
from safetensors.numpy import save_file

from planner.cli.frozen_tables import show_frozen_plan
from planner.disk.json_files import parse_json
from planner.training.images.named.fgvc import _read_split
from planner.training.images.named.vtab import _read_list
from planner.training_free.class_prompts import read_class_names
from planner.training_free.plan_file import FrozenPlan
from planner.training_free.probe_folder import PROBE_FILE, TENSOR_FILE, FittedProbe, read_probe

_PLAN = {
    "schema": "budgetplan.plan/1", "schema_minor": 5,
    "candidate": {"kind": "zero_shot", "model": "openclip_b32", "batch": 32, "dtype": "float16",
                  "four_bit": False, "num_classes": 100, "prompts": ["a photo of a {}."]},
    "prediction": {"device": {"name": "rtx-2060-super", "kind": "cuda", "memory_bytes": 8 * 2**30,
                              "full_name": "NVIDIA GeForce RTX 2060 SUPER", "note": ""},
                   "rung": "replayed", "peak_bytes": 10**8, "device_bytes": 7 * 10**8,
                   "image_seconds": 3e-4, "image_seconds_interval": {"low": 2e-4, "high": 5e-4,
                                                                     "coverage": None},
                   "image_seconds_origin": "transferred from relatives", "image_joules": 0.04},
    "measurement": None, "rehearsal": None, "scores": None, "recipe": None,
    "accuracy": {"value": 0.8, "source": "zero-shot; a paper", "kind": "published", "low": None,
                 "high": None, "coverage": None},
    "budget_bytes": 2 * 10**9, "provenance": {"data": "cifar100", "made_at": "2026-11-30"},
}  # fmt: skip

_PROBE = FittedProbe(
    model="dinov2_s", backbone="vit_small_patch14_dinov2", image_size=224,
    weights={"kind": "file", "detail": "w", "notes": []}, weights_file="/w.safetensors",
    data="digits", class_names=("a", "b", "c"), accuracy=0.9, selection_accuracy=0.8,
    inverse_regularisation=1.0, features=4, train_images=30, test_images=9,
    extraction_seconds=1.0, fit_seconds=0.1,
)  # fmt: skip


class FrozenTarget:
    """Reads mutants of each kind of file.

    Args:
        folder: folder for the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plans, self._probes = JsonMutator(_PLAN), JsonMutator(_PROBE.to_json())
        tensors = {"weight": np.zeros((3, 4), np.float32), "bias": np.zeros(3, np.float32)}
        save_file(tensors, folder / TENSOR_FILE)
        self._splits = JsonMutator({"a/1.jpg": 1, "a/2.jpg": 1, "b/3.jpg": "2"})
        self._checks: tuple[Callable[[Random], None], ...] = (
            self._plan, self._plan, self._probe, self._names, self._list, self._split
        )  # fmt: skip

    def check(self, rng: Random) -> None:
        """Read a mutant of one kind.

        Raises:
            BudgetplanError: the mutant is refused.
            FaultError: it is read, but not to its content.
        """
        rng.choice(self._checks)(rng)

    def _plan(self, rng: Random) -> None:
        plan = FrozenPlan.from_json(parse_json(self._plans.mutant(rng), where="plan file"))
        show_frozen_plan(plan, Console(file=StringIO(), highlight=False, width=80))
        text = json.dumps(plan.to_json(), allow_nan=False)
        if FrozenPlan.from_json(json.loads(text)) != plan:
            raise FaultError("the plan that was written again is another one")

    def _probe(self, rng: Random) -> None:
        (self.folder / PROBE_FILE).write_bytes(self._probes.mutant(rng))
        fitted, weight, bias = read_probe(self.folder)
        if weight.shape != (len(fitted.class_names), fitted.features) or bias.shape != (3,):
            raise FaultError(f"tensors of shape {weight.shape} and {bias.shape}")

    def _names(self, rng: Random) -> None:
        if not all(read_class_names(self._damaged("names.txt", b"cat\ndog\nsea lion\n", rng))):
            raise FaultError("an empty name")

    def _list(self, rng: Random) -> None:
        whole = b"images/train/1.jpg 3\nimages/train/2.jpg 0\n"
        for path, label in _read_list(self._damaged("train800.txt", whole, rng), 10):
            if not 0 <= label < 10 or ".." in path.parts or self.folder not in path.parents:
                raise FaultError(f"{path} with label {label}")

    def _split(self, rng: Random) -> None:
        file = self.folder / "train.json"
        file.write_bytes(self._splits.mutant(rng))
        for each in _read_split(file).values():
            if not isinstance(each, int | str):
                raise FaultError(f"a class id of type {type(each)}")

    def _damaged(self, name: str, content: bytes, rng: Random) -> Path:
        """Write a text file with a few bytes removed, replaced or added."""
        data = bytearray(content)
        for _ in range(rng.choice((0, 1, 2, 5))):
            place = rng.randrange(len(data) + 1)
            data[place : place + rng.randrange(3)] = rng.choice(
                (b"", b"\0", b"\xff", b"\n\n", b"../", b"/", b" ", b"99", b"\x1b[2J", b"x" * 300)
            )
        file = self.folder / name
        file.write_bytes(bytes(data))
        return file
