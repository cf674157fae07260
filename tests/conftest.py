"""Settings of all tests."""

import atexit
import os
import shutil
import tempfile

# pytest-xdist already keeps every core busy: a worker that takes two threads waits for itself
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
elif "BUDGETPLAN_CACHE" not in os.environ:
    # nobody's own profiles are read or written; workers share what their parent made
    os.environ["BUDGETPLAN_CACHE"] = tempfile.mkdtemp(prefix="budgetplan-tests-")
    atexit.register(shutil.rmtree, os.environ["BUDGETPLAN_CACHE"], ignore_errors=True)

# a list of models without fine-tuning costs seconds on an empty cache; its own tests ask for it
os.environ.setdefault("BUDGETPLAN_TRAINING_FREE", "0")

from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
settings.register_profile(
    "nightly", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
