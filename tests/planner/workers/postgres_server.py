"""A PostgreSQL server of Debian's package in a folder of its own, run by an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; None if it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders and (folders[-1] / "initdb").exists() else None


def needed_programs() -> Path:
    """Return the same; without it fail in CI and skip the test elsewhere."""
    found = find_programs()
    if found is None:
        reason = "PostgreSQL is not installed (apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class PostgresServer:
    """A server with a database ``runs``; nothing is kept after ``close``."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="budgetplan-postgres-"))
        self._user = _ordinary_user()
        if self._user is not None:
            os.chown(self._folder, self._user, -1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._run(
            "initdb", "-D", "data", "-U", "me", "-A", "trust", "-N", "--no-locale", "-E", "UTF8"
        )
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "me", "runs")

    @property
    def url(self) -> str:
        return f"postgresql://me:secret@127.0.0.1:{self._port}/runs"

    def start(self) -> None:
        settings = "listen_addresses=127.0.0.1", "max_connections=60", "fsync=off"
        options = f"-p {self._port} -k '' " + " ".join(f"-c {each}" for each in settings)
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self, *, mode: str = "immediate") -> None:
        """Stop; ``immediate`` cuts every connection, as a crash does."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", mode, "stop")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            check=False,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stdout!r}")


def _ordinary_user() -> int | None:
    """Return the user to run as, if this process is root, which PostgreSQL refuses."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    pytest.skip("there is no ordinary user to run PostgreSQL")
