"""Commands as forks of one process that has imported everything, and their ends.

A command line takes about eight seconds to import PyTorch, timm and Optuna on a slow core. A fork of
a process with these imports starts at once, so hundreds of kills fit into an hour. The processes
that a command starts itself (sandboxes of real runs) are started as they always are.

Each command is the leader of a session of its own. Its children stay in this session, so the
session shows which processes outlive it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_LOOKS = 0.01

LONGEST_SECONDS = 900.0
"""Time after which a command counts as hung."""

_BEFORE = ("sandbox", "scripts", "__main__", "array_pickle")
"""Parts of names of modules that run when they are imported, or need not be."""


def import_everything() -> None:
    """Import both packages, and what their functions import late."""
    import planner
    import profiler

    for package in (profiler, planner):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not any(part in found.name for part in _BEFORE):
                with contextlib.suppress(ImportError):
                    importlib.import_module(found.name)
    for name in (
        "torch._dynamo", "torch._subclasses.fake_tensor", "sklearn.neighbors", "peft",
        "sklearn.linear_model", "sklearn.pipeline", "optuna.samplers", "sqlalchemy.orm",
        "torchvision.transforms.v2", "matplotlib.figure", "rich.progress", "scipy.optimize",
    ):  # fmt: skip
        importlib.import_module(name)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a command, as its progress events show it.

    Attributes:
        name: name of the stage; ``start`` before the first event.
        seconds: duration of the stage in an uninterrupted run.
    """

    name: str
    seconds: float


class Command:
    """A command that runs in a fork.

    Args:
        arguments: arguments of the command line.
        folder: working folder.
        log: file for its standard output and standard error.
        variables: environment variables beside those of this process.
    """

    def __init__(
        self, *arguments: str, folder: Path, log: Path, variables: Mapping[str, str]
    ) -> None:
        self.log, self.began = log, time.monotonic()
        self.code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run_and_exit(arguments, folder, log, variables)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the command runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - self.began > LONGEST_SECONDS:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"hung for {LONGEST_SECONDS} s: {self.text()[-500:]}")
        return self.code

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        while self.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        assert self.code is not None
        return self.code

    def wait_at_most(self, seconds: float) -> int | None:
        """Wait for the end, but kill the command after some time.

        Returns:
            The exit code, or None if the command was killed.
        """
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if self.poll() is not None:
            return self.code
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        return None

    def stop_after(self, seconds: float, number: int, *, whole_group: bool) -> bool:
        """Send a signal some time after the command has installed its handlers.

        Args:
            seconds: time to wait.
            number: the signal.
            whole_group: whether its children in the same process group receive it too.

        Returns:
            Whether the command was still running.
        """
        while self.poll() is None and not self._handles(signal.SIGTERM):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if self.poll() is not None:
            return False
        (os.killpg if whole_group else os.kill)(self.pid, number)
        return True

    def _handles(self, number: int) -> bool:
        """Return whether the process has a handler for a signal."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
        return False

    def text(self) -> str:
        """Return what the command has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stage(self) -> str:
        """Return the stage of the last progress event."""
        for line in reversed(self.text().splitlines()):
            if line.startswith('{"event": "progress"') and line.endswith("}"):
                return str(json.loads(line)["stage"])
        return "start"

    def stages(self) -> list[Stage]:
        """Wait for the end; return the stages in their order, timed by looking at the events."""
        begins = [("start", time.monotonic())]
        while self.poll() is None:
            name = self.stage()
            if name != begins[-1][0]:
                begins.append((name, time.monotonic()))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        ends = [seconds for _, seconds in begins[1:]] + [time.monotonic()]
        return [
            Stage(name=name, seconds=end - begin)
            for (name, begin), end in zip(begins, ends, strict=True)
        ]

    def kill_in(self, stage: str, after_seconds: float, number: int) -> int:
        """Send a signal some time after a stage began; return the exit code."""
        while self.poll() is None and self.stage() != stage:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        end = time.monotonic() + after_seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if self.poll() is None:
            os.kill(self.pid, number)
        return self.wait()

    def alive_after_two_seconds(self) -> int:
        """Return the number of processes of the command that are alive two seconds later."""
        end = time.monotonic() + 2
        while self._processes() and time.monotonic() < end:
            time.sleep(0.05)
        return len(self._processes())

    def _processes(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                if state != "Z" and int(session) == self.pid:
                    found.append(int(path.name))
        return found


def _run_and_exit(
    arguments: tuple[str, ...], folder: Path, log: Path, variables: Mapping[str, str]
) -> Any:
    """Run the command line in this fork; never returns."""
    code: object = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(variables)
        tempfile.tempdir = None  # it is looked up again
        # a shell's background job ignores SIGINT, and what it starts would too
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        silence, _ = os.pipe()  # a standard input on which nothing comes, without an end
        for number, handle in ((0, silence), (1, sink), (2, sink)):
            os.dup2(handle, number)
        sys.argv = ["budgetplan", *arguments]
        from planner.cli import main

        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
