"""No secret of a storage URL is shown, stored or quoted in a message."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

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
        ("postgresql://host/db?user=me&PASSWORD=a%20b", "postgresql://host/db?user=me&PASSWORD=***"),
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


def test_the_file_of_an_sqlite_url() -> None:
    assert str(sqlite_path("sqlite:///a/b.db?mode=ro")) == "a/b.db"
    assert str(sqlite_path("sqlite:////a/b.db")) == "/a/b.db"
    assert sqlite_path("sqlite://") is None
    assert sqlite_path("postgresql:///db") is None
