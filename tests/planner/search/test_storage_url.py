"""No secret of a storage URL is shown, stored or quoted in a message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.cli import cli
from planner.search.storage_url import mask_secrets, mask_url, sqlite_path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///studies/toy.db", "sqlite:///studies/toy.db"),
        ("sqlite:////home/me@work/toy.db", "sqlite:////home/me@work/toy.db"),
        ("sqlite:///a.db?mode=ro&password=x1y", "sqlite:///a.db?mode=ro&password=***"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql+psycopg2://me:secret@host:5432/db", "postgresql+psycopg2://***@host:5432/db"),
        ("postgresql://me:s/e?c@r#et@host/db", "postgresql://***@host/db"),
        ("mysql://token@host/db?ssl_password=a&charset=utf8",
         "mysql://***@host/db?ssl_password=***&charset=utf8"),
        ("sqlite:///a.db?uid=7", "sqlite:///a.db?uid=***"),
        ("journal:////home/me@work/toy.log", "journal:////home/me@work/toy.log"),
        ("postgresql://host/db?user=me&PASSWORD=a%20b",
         "postgresql://host/db?user=***&PASSWORD=***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("me:secret@host", "***@host"),
    ],
)  # fmt: skip
def test_urls(url: str, shown: str) -> None:
    assert mask_url(url) == shown
    assert mask_url(shown) == shown


SECRETS = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=3)


@given(SECRETS, st.sampled_from(["postgresql", "mysql+pymysql", "oracle"]))
def test_no_password_passes(secret: str, scheme: str) -> None:
    assume(secret not in f"{scheme}://***@host/database?password=***")
    url = f"{scheme}://me:{secret}@host/database"
    assert secret not in mask_url(url)
    message = f"could not connect to {url}: password {secret} is wrong"
    assert secret not in mask_secrets(message, url)


def test_a_decoded_password_in_a_drivers_message_is_masked() -> None:
    url = "postgresql://me:s%40cret@host/db"
    assert mask_secrets("FATAL: s@cret and s%40cret", url) == "FATAL: *** and ***"


USERS = st.from_regex(r"\w([\w. -]*\w)?", fullmatch=True)


@given(USERS, st.sampled_from(["{}@", "{}:p4s5w0rd@", "{}%40corp:p4s5w0rd@", "?user={}"]))
def test_no_user_name_passes(user: str, place: str) -> None:
    """Messages of psycopg, PyMySQL and pyodbc, which name the user alone."""
    where = place.format(user)
    url = f"postgresql://host/db{where}" if where.startswith("?") else f"mysql://{where}host/db"
    full = f"{user}@corp" if "%40" in where else user
    for message in (
        'FATAL: role "{}" does not exist',
        "(1045, \"Access denied for user '{}'@'10.0.0.1'\")",
        "[28000] Login failed for user '{}'.",
    ):
        words = re.findall(r"\w+", message)
        assume(user not in words)
        assert mask_secrets(message.format(full), url) == message.format("***")


def test_a_user_name_within_a_word_is_none() -> None:
    url = "postgresql://app:pw@host/db"
    message = 'role "app" of the application (app, pw) cannot map a path'
    expected = 'role "***" of the application (***, ***) cannot map a path'
    assert mask_secrets(message, url) == expected


SECRET_URLS = (
    "{}://someuser:somepass@somehost/db",
    "{}://somehost/db?user=someuser&sslkey=somepass",
)


@pytest.mark.parametrize("url", [text.format(name) for text in SECRET_URLS for name in (
    "postgresql", "mysql+pymysql", "oracle", "journal", "grpc", "unknown")])  # fmt: skip
def test_no_command_shows_the_user_or_the_password(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["dashboard", "--storage", url],
        ["dashboard", url],
        ["dashboard", url.partition("://")[2]],
        ["worker", "--study", "toy", "--storage", url, "--device", "cpu", "--until-empty"],
    ):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code not in (0, 1), result.output
        assert "someuser" not in result.output
        assert "somepass" not in result.output


def test_the_file_of_an_sqlite_url() -> None:
    assert str(sqlite_path("sqlite:///a/b.db?mode=ro")) == "a/b.db"
    assert str(sqlite_path("sqlite:////a/b.db")) == "/a/b.db"
    assert sqlite_path("sqlite://") is None
    assert sqlite_path("postgresql:///db") is None
