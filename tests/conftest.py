"""Settings of all tests."""

import os

# pytest-xdist already keeps every core busy: a worker that takes two threads waits for itself
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
