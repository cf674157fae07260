"""Studies are imported as they are when they run: each from its own folder, under plain names.

Two studies may both have a ``run.py``. A test module names the folders that it imports from in
``STUDY_FOLDERS``; they are on the path, and no module of a study is loaded, when its tests begin.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module", autouse=True)
def study_folders(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put the folders of a test module on the path, and forget the modules of other studies."""
    folders = [str(STUDIES / name) for name in getattr(request.module, "STUDY_FOLDERS", ())]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and STUDIES in Path(file).parents:
            del sys.modules[name]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)
