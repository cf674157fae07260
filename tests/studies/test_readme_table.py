"""Figures of the README are those of the studies' summaries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "studies"
STUDY_FOLDERS = ("",)


def test_the_readmes_table_is_computed_from_the_summaries() -> None:
    import readme_table

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{readme_table.START}\n{readme_table.table()}{readme_table.END}" in text


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*/**/*.jsonl.gz")), ids=lambda p: p.name)
def test_every_raw_row_has_its_provenance(path: Path) -> None:
    import harness

    rows = harness.Rows(path.parent, path.name.removesuffix(".jsonl.gz")).read()
    assert rows
    for row in rows:
        assert set(harness.PROVENANCE) <= set(row)
        # a row of the harness itself knows where it was made
        if not str(row["schema"]).endswith("/1"):
            assert row["commit"] and row["date"] and row["processor"]


def test_rows_of_a_run_are_appended_packed_and_read_in_order(tmp_path: Path) -> None:
    import harness

    book = harness.Rows(tmp_path)
    book.append({"n": 1}, {"n": 2})
    book.pack()
    book.append({"n": 3})
    assert [row["n"] for row in book.read()] == [1, 2, 3]
    book.pack()
    assert [row["n"] for row in book.read()] == [1, 2, 3]
    assert not book.open.exists()
    before = book.packed.read_bytes()
    book.write(book.read())
    assert book.packed.read_bytes() == before


def test_a_campaign_over_two_commits_says_so(tmp_path: Path) -> None:
    import harness

    one, two = {"commit": "a"}, {"commit": "b"}
    assert harness.campaign([one, one])["one_commit"]
    assert not harness.campaign([one, two])["one_commit"]
    assert not harness.campaign([one, {"commit": None}])["one_commit"]
    harness.write_summary(tmp_path, [one, two], answer=42)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["answer"] == 42
    assert written["campaign"]["commit"] == {"a": 1, "b": 1}
