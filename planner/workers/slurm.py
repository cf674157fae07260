"""Starts workers as SLURM jobs, through submitit.

A job runs ``budgetplan worker`` in a process of its own. At a preemption or at the end of its time,
submitit sends a signal to the job, which ends the worker, so that its run is queued again, and then
queues the job again.

The storage URL may hold a password, and submitit writes the arguments of a job to files. The URL is
therefore passed by the environment, which SLURM copies from the process that submits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from profiler.errors import InputError, UsageError
from profiler.running.process_end import end_with_parent

STORAGE_VARIABLE = "BUDGETPLAN_STORAGE"
"""Environment variable from which ``budgetplan worker`` takes its storage URL."""

_COMMAND_LINE = "from planner.cli import main; main()"

END_SECONDS = 20.0
"""Time for a worker to give its run back after SIGTERM; SLURM allows 30 s before SIGKILL."""


class SlurmWorker:
    """A job that runs a worker; submitit pickles it.

    Args:
        arguments: arguments of ``budgetplan worker``, without the storage.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the worker and return its exit code."""
        pid = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND_LINE, "worker", *self.arguments],
            preexec_fn=lambda: end_with_parent(pid),  # noqa: PLW1509  # no threads at this point
        )
        return self._process.wait()

    def checkpoint(self) -> Any:
        """End the worker and return the job to queue again; submitit calls it at a preemption."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return DelayedSubmission(SlurmWorker(self.arguments))


def job_options(given: Sequence[str]) -> dict[str, str | int]:
    """Return the parameters of jobs from texts ``NAME=VALUE``.

    Raises:
        UsageError: a text is not of that form.
    """
    options: dict[str, str | int] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier() and value):
            raise UsageError(f"a SLURM option is written as partition=gpu, got {text!r}")
        options[name] = int(value) if value.isdecimal() else value
    return options


def submit_workers(
    url: str,
    study: str,
    count: int,
    *,
    folder: Path,
    options: Mapping[str, str | int],
    device: str = "auto",
    until_empty: bool = False,
    cluster: str = "slurm",
) -> list[str]:
    """Submit workers and return the ids of their jobs.

    Args:
        url: storage URL, reachable from the nodes.
        study: name of the study.
        count: number of workers.
        folder: folder for logs, on a disk that the nodes share.
        options: parameters of the jobs, as submitit names them; those of SLURM alone begin with
            ``slurm_``, which may be left out.
        device: device of the workers.
        until_empty: whether they end once nothing is left to run.
        cluster: submitit's name of the cluster; ``local`` starts processes.

    Raises:
        InputError: submitit or SLURM is not installed, or refuses a parameter.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise InputError("--slurm needs submitit: pip install 'budgetplan[slurm]'") from error
    arguments = ["--study", study, "--device", device, *(["--until-empty"] if until_empty else [])]
    before = os.environ.get(STORAGE_VARIABLE)
    os.environ[STORAGE_VARIABLE] = url
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        known = set(executor._valid_parameters())
        executor.update_parameters(
            name="budgetplan",
            **{(k if k in known else f"slurm_{k}"): v for k, v in options.items()},
        )
        jobs = [executor.submit(SlurmWorker(arguments)) for _ in range(count)]
    except (RuntimeError, NameError, TypeError, OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"SLURM did not take the jobs: {error}") from error
    finally:
        if before is None:
            del os.environ[STORAGE_VARIABLE]
        else:
            os.environ[STORAGE_VARIABLE] = before
    return [job.job_id for job in jobs]
