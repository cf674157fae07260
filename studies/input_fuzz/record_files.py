"""Mutants of smaller JSON records: device files, probe runs in a study, and whole answers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from random import Random

from json_mutants import JsonMutator
from outcome import FaultError
from plan_files import EXAMPLE

from planner.disk.json_files import parse_json
from planner.plan import read_plan
from planner.training.probe_records import RATE_FACTORS, ProbeRun, ProbeSetting
from planner.training.probe_statistics import best_rates, estimate_learners, format_chance
from profiler.devices.device_file import read_device
from profiler.devices.table import cuda_context, lookup, short_name, workspaces_of
from profiler.timing.rates import published_rates


class DeviceTarget:
    """Reads mutants of a device file, as ``--device-spec`` does.

    Args:
        folder: folder for the file.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "device.json"
        name = "GeForce RTX 2060 of mine"
        row = asdict(lookup("rtx-2060-super"))
        self._mutator = JsonMutator(row | {"full_name": name, "name": short_name(name)})

    def check(self, rng: Random) -> None:
        """Read a mutant; a device that is read has what a prediction takes from it.

        Raises:
            BudgetplanError: the mutant is refused.
            FaultError: a rate or a size is not a positive, finite number.
        """
        self.file.write_bytes(self._mutator.mutant(rng))
        spec = read_device(self.file)
        sizes = [float(cuda_context(spec).nbytes), *map(float, workspaces_of(spec))]
        for precision in ("fp32", "bf16", "fp16"):
            rates = published_rates(spec, precision=precision)
            if rates is not None:
                sizes += [rates.flops_per_second, rates.bytes_per_second]
        if not all(math.isfinite(size) and size >= 0 for size in sizes):
            raise FaultError(f"a size or rate is not a number: {sizes}")


class ProbeTarget:
    """Reads mutants of a probe run that a study keeps, and estimates accuracies from it.

    Args:
        folder: not used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        setting = ProbeSetting(
            data="digits 1", weights="random", model="test_vit", image_size=32, train_images=100,
            held_out_images=40, device="cpu", seed=0,
        )  # fmt: skip
        self._runs = [
            ProbeRun(
                setting=setting, learner=learner, rate_factor=factor, learning_rate=1e-3 * factor,
                seed=0, steps=steps, seconds=1.0, right=right * 5,
            )
            for learner, right in (("lora r8, adamw, 32 a step", "ff"), ("head", "a5"))
            for steps in (25, 100)
            for factor in RATE_FACTORS
        ]  # fmt: skip
        self._mutators = [JsonMutator(run.to_json()) for run in self._runs]

    def check(self, rng: Random) -> None:
        """Read a mutant beside whole runs.

        Raises:
            BudgetplanError: the mutant is refused.
            FaultError: an estimate is not a share.
        """
        chosen = rng.randrange(len(self._runs))
        raw = self._mutators[chosen].mutant(rng)
        run = ProbeRun.from_json(parse_json(raw, where="study"))
        runs = [run if i == chosen else each for i, each in enumerate(self._runs)]
        runs = [each for each in runs if each.setting == run.setting]
        best_rates(runs)
        for found in estimate_learners(runs, planned_steps=rng.choice((None, 1, 1000))):
            format_chance(found.best)
            if not 0 <= found.accuracy <= 1 or not found.low <= found.high:
                raise FaultError(f"an estimate is no share: {found}")


class AnswerTarget:
    """Reads mutants of an answer of ``recommend --json`` where a plan file is expected.

    Args:
        folder: folder for the file.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "answer.json"
        plan = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        answer = {
            "schema": "budgetplan.recommendation/1", "budget_bytes": 2 * 10**9, "study": "s",
            "trials": 10, "seconds": 1.5, "front": [plan], "recommended": 0, "baselines": {},
        }  # fmt: skip
        self._mutators = [JsonMutator(answer), JsonMutator({**plan, "front": [plan]})]

    def check(self, rng: Random) -> None:
        """Read a mutant as a plan file, which it is not.

        Raises:
            BudgetplanError: the mutant is refused.
            FaultError: it is read as a plan, with the keys of an answer.
        """
        raw = rng.choice(self._mutators).mutant(rng)
        self.file.write_bytes(raw)
        read_plan(self.file)
        data = json.loads(raw)
        if "front" in data and data.get("schema_minor") != 99:
            raise FaultError("an answer was read as a plan")
