"""Children end with their parent, and signals end a process with its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiler.running.process_end import Terminated, exit_code_of, termination_raises

ROOT = Path(__file__).parents[3]

NOT_IGNORED = """
import signal
# A shell starts what runs in its background with SIGINT ignored, and nohup ignores SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""

POOL = (
    NOT_IGNORED
    + r"""
import os, sys, time
from planner.parallel import map_forked
os.sched_getaffinity = lambda pid: {0, 1}

def work(item):
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(60)

from profiler.running.process_end import exit_code_of, termination_raises
try:
    with termination_raises():
        map_forked(work, [0, 1], lambda item, done: None)
except KeyboardInterrupt as interrupt:
    sys.exit(exit_code_of(interrupt))
"""
)

SANDBOX = (
    NOT_IGNORED
    + """
import sys
from profiler.running.process_end import exit_code_of, termination_raises
from profiler.running.sandbox import run_in_process
import sandbox_children as children
try:
    with termination_raises():
        run_in_process(
            children.report_and_wait, children.Nothing(), children.Nothing, timeout_seconds=300,
            on_progress=lambda text, done: print(text, flush=True),
        )
except KeyboardInterrupt as interrupt:
    sys.exit(exit_code_of(interrupt))
"""
)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(("script", "children"), [(POOL, 2), (SANDBOX, 1)], ids=["pool", "sandbox"])
def test_no_child_outlives_its_parent(script: str, children: int, number: signal.Signals) -> None:
    paths = [str(ROOT), str(Path(__file__).parent)]
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    with parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(children)]
        assert all(is_running(pid) for pid in pids)
        parent.send_signal(number)
        code = parent.wait(30)
        deadline = time.monotonic() + 30
        while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(is_running(pid) for pid in pids)
    assert code == (-number if number is signal.SIGKILL else 128 + number)


def test_exit_codes() -> None:
    assert exit_code_of(KeyboardInterrupt()) == 130
    assert exit_code_of(Terminated(signal.SIGTERM)) == 143
    assert exit_code_of(Terminated(signal.SIGHUP)) == 129


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(Terminated, match="SIGTERM"), termination_raises():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
