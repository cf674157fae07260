"""Names of the backbones, read without importing torch or timm.

timm registers a model when its module is imported, which takes seconds. A name look-up therefore
reads the names from the text of timm's installed modules: functions with ``@register_model``, and
the tables of ``register_model_deprecations``. A test compares them with timm's own registry.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

OWN_MODELS = (
    "vim_tiny_patch16_224",
    "vim_small_patch16_224",
    "vim_base_patch16_224",
    "mambavision_t",
    "mambavision_t2",
    "mambavision_s",
    "mambavision_b",
    "mambavision_l",
    "mambavision_l2",
)
"""Models written here."""

_REGISTERED = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)", re.MULTILINE)

_DEPRECATIONS = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\}\)", re.DOTALL)

_KEY = re.compile(r"""["']([\w.]+)["']\s*:""")


def own_and_timm_names() -> list[str]:
    """Return the models written here, then timm's in natural order, without deprecated names."""
    return [*OWN_MODELS, *_timm_names()[0]]


def is_timm_name(name: str) -> bool:
    """Return whether timm has a model with a name, which may be deprecated or a user's own."""
    current, deprecated = _timm_names()
    return name in current or name in deprecated or _is_registered_now(name)


def _is_registered_now(name: str) -> bool:
    """Return whether timm's registry has a name, if timm is imported already.

    A user of the Python interface can register models of their own.
    """
    import sys

    timm = sys.modules.get("timm")
    return timm is not None and bool(timm.is_model(name))


@cache
def _timm_names() -> tuple[tuple[str, ...], frozenset[str]]:
    """Return timm's model names in natural order, and its deprecated names."""
    spec = find_spec("timm")
    assert spec is not None, "timm is a dependency"
    assert spec.origin is not None
    current, deprecated = set[str](), set[str]()
    for path in Path(spec.origin).with_name("models").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        current.update(_REGISTERED.findall(text))
        for table in _DEPRECATIONS.findall(text):
            deprecated.update(_KEY.findall(table))
    current -= deprecated
    return tuple(sorted(current, key=_natural_order)), frozenset(deprecated)


def _natural_order(name: str) -> list[int | str]:
    """Return a sort key by which ``vit_9`` comes before ``vit_10``, as in timm's listing."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
