"""Settings of all tests."""

import atexit
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


@pytest.fixture(scope="module", autouse=True)
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give the CPU rates that are made up, in a module that says ``MADE_UP_PROCESSOR = True``.

    To time the kinds of a backbone takes seconds and gives other numbers in each run. On a machine
    that the workers keep busy the timings are not stored, so that every process makes them again.
    Tests of bytes, and of answers whose seconds are not looked at, do not need them.
    """
    if not getattr(request.module, "MADE_UP_PROCESSOR", False):
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
        refill_seconds=1e-5,
        update_slowness=2.0,
        origin=Origin.MEASURED,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("profiler.timing.cpu_rates._stored", lambda family, threads: rates)
        yield
