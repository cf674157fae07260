"""Settings of all tests."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

# pytest-xdist already keeps every core busy: a worker that takes two threads waits for itself
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
elif "BUDGETPLAN_CACHE" not in os.environ:
    # nobody's own profiles are read or written; workers share what their parent made
    os.environ["BUDGETPLAN_CACHE"] = tempfile.mkdtemp(prefix="budgetplan-tests-")
    atexit.register(shutil.rmtree, os.environ["BUDGETPLAN_CACHE"], ignore_errors=True)

# a list of models without fine-tuning costs seconds on an empty cache; its own tests ask for it
os.environ.setdefault("BUDGETPLAN_TRAINING_FREE", "0")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
settings.register_profile(
    "nightly", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the modules with slow tests first: a worker has a module to itself (``--dist loadfile``).

    A long module that came last would keep one worker busy while the others wait.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Exclude what the imports made from garbage collection, as a process of the program would.

    Every training collects garbage before its first step. Of the objects of all test modules that
    took longer than the training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give the CPU rates that are made up, unless a module says ``TIMES_THE_PROCESSOR = True``.

    To time the kinds of a backbone takes seconds and gives other numbers in each run. On a machine
    that the workers keep busy the timings are not stored, so that every process makes them again.
    """
    if getattr(request.module, "TIMES_THE_PROCESSOR", False):
        yield
        return
    from profiler.records import Origin
    from profiler.timing.roofline import Rates

    rates = Rates(
        flops_per_second=5e10,
        bytes_per_second=1e10,
        watts=None,
        source="each kind of operation timed on this processor",
        launch_seconds=5e-6,
        slowness={"aten::convolution": 2.0, "aten::native_batch_norm": 3.0, "aten::addmm": 1.5},
        recompute_python_seconds=1e-5,
        update_slowness=2.0,
        update_launch_seconds=1e-6,
        origin=Origin.MEASURED,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profiler.timing.cpu_rates._stored", lambda family, threads: rates)
        yield


@pytest.fixture(scope="module", autouse=True)
def real_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make real runs in this process, in a module that says ``RUNS_IN_PROCESS = True``.

    A process of its own imports PyTorch, timm and peft for five seconds. Tests of memory caps, of
    time limits and of processes that die take the sandbox itself.
    """
    if not getattr(request.module, "RUNS_IN_PROCESS", False):
        yield
        return
    from tests.in_process import run_in_this_process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profiler.running.measurement.run_in_process", run_in_this_process)
        patch.setattr("planner.training.validation.run_in_process", run_in_this_process)
        patch.setattr("profiler.running.measurement.cap_host_memory", lambda cap_bytes: None)
        yield
