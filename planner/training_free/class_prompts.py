"""Class names and prompts of zero-shot classification.

The ensembles are those that the publication of CLIP used (arXiv 2103.00020, section 3.1.4;
github.com/openai/CLIP, data/prompts.md). The features of a class are the mean over its prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from profiler.errors import InputError, UsageError
from profiler.json_records import shortened, unsafe_text

_CIFAR = tuple(
    f"a {kind}photo of {article} {{}}."
    for article in ("a", "the")
    for kind in (
        "",
        "blurry ",
        "black and white ",
        "low contrast ",
        "high contrast ",
        "bad ",
        "good ",
    )
) + tuple(
    f"a photo of {article} {size} {{}}." for article in ("a", "the") for size in ("small", "big")
)

_TEXTURES = tuple(
    f"a photo of {article} {{}} {noun}."
    for article in ("a", "the")
    for noun in ("texture", "pattern", "thing", "object")
)

_ANY = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
)  # fmt: skip
"""The seven prompts that CLIP's authors chose for ImageNet."""

ENSEMBLES = {"cifar10": _CIFAR, "cifar100": _CIFAR, "cifar10-c": _CIFAR, "dtd": _TEXTURES}
"""Prompts of named data sets."""

MADE_UP_NAME = re.compile(r"class \d+")
"""Class of a data set whose files have numbers in place of names."""

LONGEST_CLASS_NAME = 200


def prompts_for(data: str) -> tuple[str, ...]:
    """Return the ensemble for a data set; the one for ImageNet where none is published."""
    return ENSEMBLES.get(data.partition(":")[0], _ANY)


def check_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return prompts that each have the placeholder ``{}`` once.

    Raises:
        UsageError: a prompt has none, or several.
    """
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise UsageError(
                f"a prompt has {{}} once in place of the class name, got {shortened(prompt)}"
            )
    return tuple(prompts)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names in a text file, one on each line, in the order of the labels.

    Raises:
        InputError: the file cannot be read, or has an empty, overlong or unprintable line.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"class names {path} is not a regular file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InputError(f"class names {path} cannot be read as UTF-8 text: {error}") from error
    names = [line.strip() for line in text.rstrip("\n").split("\n")]
    for number, name in enumerate(names, start=1):
        if not name or len(name) > LONGEST_CLASS_NAME or unsafe_text(name):
            raise InputError(
                f"{path}, line {number}: expected a class name of at most {LONGEST_CLASS_NAME} "
                f"characters, got {shortened(name)}"
            )
    return tuple(names)


def spoken_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names as a text has them: ``maple tree`` for ``maple_tree``.

    Raises:
        InputError: the data set has numbers in place of names.
    """
    if any(MADE_UP_NAME.fullmatch(name) for name in names):
        raise InputError(
            "the classes of this data set have no names; give them with --class-names FILE"
        )
    return tuple(" ".join(name.replace("_", " ").split()) for name in names)


def matching_class(answer: str, names: Sequence[str]) -> int | None:
    """Return the class that a free answer names, None if it names no class.

    The whole answer counts first, then the longest name that stands in it as whole words.
    """
    words = [_plain_words(name) for name in names]
    text = _plain_words(answer)
    if text in words and text:
        return words.index(text)
    inside = [i for i, name in enumerate(words) if name and f" {name} " in f" {text} "]
    return max(inside, key=lambda i: (len(words[i]), -i), default=None)


def _plain_words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower().replace("_", " ")))
