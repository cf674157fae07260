"""Counts idioms in docstrings and comments that readers of the field stumble over.

    python tests/language.py [FOLDER...]    # rates per 1,000 words, and every hit with its place

Three families (per 1,000 words of docstrings Optuna has 0.0, 0.1 and 0.9, Zeus 0.1, 0.2 and 4.3):
``noun clause``: "what is, what it takes" where a noun would stand; ``bare of``: "of one, of it, of
which"; ``speaking thing``: things that tell, say, ask or know.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = {
    "noun clause": re.compile(
        r"\bwhat(?:ever)? (?:is|it|was|were|are|they|the|a|an|every|each|has|have|had|can|could|"
        r"may|might|must|will|would|should|does|do|did|there|this|that|these|those|no|one|we|you|its|"
        r"[a-z]+s|[a-z]+ed)\b",
        re.IGNORECASE,
    ),
    "bare of": re.compile(
        r"(?:\bof (?:one|it|which|them|those|what|whom|all that)\b)", re.IGNORECASE
    ),
    "speaking thing": re.compile(
        r"\b(?:tells?|told|says?|said|asks?|asked|asking|knows?|knew|speaks?|spoken)\b",
        re.IGNORECASE,
    ),
}
MOST_PER_1000_WORDS = {"noun clause": 0.1, "bare of": 0.2, "speaking thing": 0.9}
METAPHORS = re.compile(
    r"\b(?:dear(?:er|est)?|behind us|of their own accord|is had again|had again|to the letter|"
    r"in one piece|for the time being|comes to nothing|gives? back|stands? still)\b",
    re.IGNORECASE,
)
"""Private metaphors, none of which may stand."""
FRAGMENT = re.compile(r"^(?:Of|From|For|Which|Whose|Likewise|The same|In)\b[^.:;]{0,40}\.?$")
"""A description that is no noun phrase of its own ("Of everything random.")."""


def sources(folders: tuple[str, ...] = ("planner", "profiler")) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring and attribute docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, text


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every comment that is no marker for a tool."""
    reader = io.StringIO(path.read_text(encoding="utf-8")).readline
    for token in tokenize.generate_tokens(reader):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if not text.startswith(("noqa", "type:", "fmt:", "pragma", "---")):
                yield token.start[0], text


def attribute_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, description) of each line of an ``Args:`` or ``Attributes:`` section."""
    inside = False
    for line in text.splitlines():
        if re.match(r"\s*(Args|Attributes|Raises|Returns|Yields):\s*$", line):
            inside = line.strip() in ("Args:", "Attributes:")
        elif inside and (found := re.match(r"\s+([\w, *]+): (.+)$", line)):
            yield found.group(1), found.group(2).strip()


def count(paths: list[Path]) -> tuple[int, Counter[str], list[str]]:
    """Return words, hits by family, and a line for every hit."""
    words, hits, places = 0, Counter[str](), []
    for path in paths:
        for line, text in [*docstrings(path), *comments(path)]:
            words += len(text.split())
            flat = " ".join(text.split())
            for family, pattern in (*FAMILIES.items(), ("metaphor", METAPHORS)):
                for found in pattern.finditer(flat):
                    hits[family] += 1
                    near = flat[max(0, found.start() - 30) : found.end() + 30]
                    places.append(f"{path.relative_to(ROOT)}:{line}: {family}: ...{near}...")
            for name, description in attribute_lines(text):
                if FRAGMENT.match(description):
                    hits["fragment"] += 1
                    places.append(
                        f"{path.relative_to(ROOT)}:{line}: fragment: {name}: {description}"
                    )
    return words, hits, places


def main() -> None:
    chosen = sys.argv[1:]
    paths = [
        p
        for p in sources()
        if not chosen or any(str(p.relative_to(ROOT)).startswith(c) for c in chosen)
    ]
    words, hits, places = count(paths)
    print("\n".join(places))
    print(f"{words} words")
    for family, number in hits.most_common():
        print(f"{family}: {number}, {1000 * number / max(words, 1):.1f} per 1,000 words")


if __name__ == "__main__":
    main()
