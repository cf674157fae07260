"""Mutants of trained folders and of cached features."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from json_mutants import JsonMutator
from outcome import FaultError, canary
from safetensors.torch import load, save
from torch import nn
from weight_files import damaged, damaged_header

sys.path.append(str(Path(__file__).parents[1] / "kill_resume"))

from crash_points import small_data, small_plan, train_into
from PIL import Image

from planner.recommendation.score_inputs import score_inputs
from planner.training.features import cached_features, frozen_classifier
from planner.training.use_trained import classify_files, open_trained
from profiler.models.build import build_model

SHARE_RESUMED = 0.2
"""Share of the mutants that a training goes on from; the others are loaded."""


class TrainedTarget:
    """Damages the folder of a small training.

    Args:
        folder: folder for the training and its mutants.
    """

    def __init__(self, folder: Path) -> None:
        self.canary, self.mutant = folder / "canary", folder / "mutant"
        self.image = folder / "image.png"
        Image.new("RGB", (40, 30), (255, 0, 0)).save(self.image)
        self.plan = small_plan()
        self.data = small_data(self.plan)
        whole = folder / "whole"
        train_into(whole, self.plan, self.data)
        self.files = {
            str(path.relative_to(whole)): path.read_bytes()
            for path in sorted(whole.rglob("*"))
            if path.is_file()
        }
        self._mutators = {
            name: JsonMutator(json.loads(content))
            for name, content in self.files.items()
            if name.endswith(".json")
        }

    def check(self, rng: Random) -> None:
        """Load a mutant and classify an image, or go on with its training.

        Raises:
            BudgetplanError: the mutant is refused.
            FaultError: code was run, a tensor is not finite, or a class has no probability.
        """
        shutil.rmtree(self.mutant, ignore_errors=True)
        for name, content in self.files.items():
            self._write(name, content)
        for _ in range(rng.choice((1, 1, 2))):
            self._damage(rng.choice(list(self.files)), rng)
        try:
            if rng.random() < SHARE_RESUMED:
                train_into(self.mutant, self.plan, self.data)
            else:
                self._use(rng)
        finally:
            if self.canary.exists():
                self.canary.unlink()
                raise FaultError("code of a file was run")

    def _use(self, rng: Random) -> None:
        score_inputs(self.mutant)
        trained = open_trained(self.mutant, device="cpu", which=rng.choice(("best", "last")))
        if not all(bool(torch.isfinite(value).all()) for value in trained.model.parameters()):
            raise FaultError("a weight is not finite")
        (found,) = classify_files(trained, [self.image], top=3)
        if found.error is not None or not all(0 <= p <= 1 for _, p in found.classes):
            raise FaultError(f"the image was classified as {found}")

    def _write(self, name: str, content: bytes) -> None:
        path = self.mutant / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _damage(self, name: str, rng: Random) -> None:
        """Change, remove or replace a file."""
        path, whole = self.mutant / name, self.files[name]
        kind = rng.random()
        if kind < 0.04:
            path.unlink(missing_ok=True)
        elif kind < 0.06:
            path.unlink(missing_ok=True)
            path.mkdir(exist_ok=True)
        elif not path.is_file():
            return
        elif kind < 0.10:
            path.write_bytes(pickle.dumps(canary(self.canary)))
        elif name in self._mutators:
            path.write_bytes(self._mutators[name].mutant(rng))
        elif name.endswith(".safetensors") and kind < 0.5:
            path.write_bytes(damaged_header(whole, rng))
        elif name.endswith(".safetensors") and kind < 0.7:
            path.write_bytes(_other_tensors(whole, rng))
        else:
            path.write_bytes(damaged(whole or b"x", rng))


def _other_tensors(whole: bytes, rng: Random) -> bytes:
    """Return a safetensors file with another value in the place of a tensor."""
    tensors = load(whole)
    name = rng.choice(list(tensors))
    changes: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda t: t * float("nan"),
        lambda t: t + float("inf"),
        lambda t: t.to(torch.int8),
        lambda t: t.to(torch.bool),
        lambda t: t.to(torch.float16),
        lambda t: t.reshape(-1),
        lambda t: t[:0],
        lambda t: t.to(torch.complex64),
    )
    tensors[name] = rng.choice(changes)(tensors[name].float())
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    return save(tensors, header["__metadata__"])


class FeatureTarget:
    """Damages the files of cached features: the right features are returned, whatever is there.

    Args:
        folder: folder of the features.
    """

    def __init__(self, folder: Path) -> None:
        self.canary, self.folder = folder / "canary", folder / "features"
        plan = small_plan()
        workload = plan.candidate.workload.replace(method="head", rank=None, micro_batch=1)
        torch.manual_seed(0)
        self.built = build_model(workload)
        images = small_data(plan).test
        self.images = replace(images, mirror=False)
        few = torch.stack([images[index][0] for index in range(4)])
        classifier = frozen_classifier(self.built, few)
        assert classifier is not None
        self.classifier: nn.Module = classifier
        self.right = self._features()
        (self.file,) = (path for path in self.folder.rglob("*") if path.is_file())
        self.whole = self.file.read_bytes()

    def _features(self) -> np.ndarray:
        found = cached_features(self.built, self.classifier, self.images, folder=self.folder)
        return np.concatenate(list(found.chunks))

    def check(self, rng: Random) -> None:
        """Write a mutant, and read the features twice.

        Raises:
            FaultError: other features are returned, code was run, or another file is left.
        """
        self.file.write_bytes(self._mutant(rng))
        if not np.array_equal(self._features(), self.right):
            raise FaultError("other features were read")
        if self.canary.exists():
            self.canary.unlink()
            raise FaultError("code of the file was run")
        if [path for path in self.folder.rglob("*") if path.is_file()] != [self.file]:
            raise FaultError("another file is left")
        if not np.array_equal(self._features(), self.right):
            raise FaultError("the damaged file was not replaced")

    def _mutant(self, rng: Random) -> bytes:
        kind = rng.random()
        if kind < 0.7:
            return damaged(self.whole, rng)
        if kind < 0.8:
            return pickle.dumps(canary(self.canary))
        buffer = io.BytesIO()
        if kind < 0.9:
            trap = np.array([[canary(self.canary)]], dtype=object)
            np.save(buffer, trap, allow_pickle=True)
        else:
            shape = rng.choice(((0, 0), (12, 3), (12, 64), (11, 64), (12,), (1, 12, 64)))
            np.save(buffer, np.zeros(shape, dtype=rng.choice((np.float32, np.float64, np.int8))))
        return buffer.getvalue()
