"""The learning-rate test: one plan, trained briefly at a few rates on the user's images.

It runs in a child process, as a probe does, and its runs are kept in the study in the same way.
"""

from __future__ import annotations

import time
from dataclasses import replace

from planner.training.probe_messages import ProbeRequest, ProbeResult
from planner.training.probe_process import readable_runs, runner_at
from planner.training.probe_records import RATE_FACTORS, ProbeRun
from profiler.running.memory_caps import use_planned_configuration
from profiler.running.sandbox import Progress

RATE_STEPS = 30
"""Optimizer steps at each rate: about one epoch of 1,000 images."""


def find_rate(request: ProbeRequest, progress: Progress) -> ProbeResult:
    """Train the only learner of a request at each rate of the bracket; store each run.

    Args:
        request: request of a probe with one learner; its time is not looked at.
        progress: called with (current run, share done).
    """
    from planner.search.probe_storage import append_probe_run, read_probe_runs

    began = time.monotonic()
    progress("loading images", 0.0)
    if request.device != "cpu":
        use_planned_configuration()
    (learner,) = request.learners
    runner = runner_at(request, learner.candidate.workload.image_size)
    known = {run.key: run for run in readable_runs(read_probe_runs(request.storage, request.study))}
    runs: list[ProbeRun] = []
    earlier = 0
    for number, factor in enumerate(RATE_FACTORS):
        progress(f"{factor:.2g} times the rate of {learner.name}", number / len(RATE_FACTORS))
        key = runner.key_of(learner, steps=RATE_STEPS, seed=0, rate_factor=factor)
        run = known.get(key)
        if run is None:
            run = runner.run(learner, steps=RATE_STEPS, seed=0, rate_factor=factor)
            assert run is not None, "no time limit was given"
            run = replace(run, of_rate_test=True)
            append_probe_run(request.storage, request.study, run.key, run.to_json())
        else:
            earlier += 1
        runs.append(run)
    return ProbeResult(
        runs=tuple(runs),
        earlier_runs=earlier,
        seconds=time.monotonic() - began,
        reason="every rate was tried",
    )
