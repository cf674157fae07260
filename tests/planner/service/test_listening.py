"""Addresses that servers listen on, and the end of ``serve`` by signals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner

from planner.cli import cli
from planner.service.listening import listening_sockets
from profiler.errors import UsageError


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with taken_port() as port:
        return port


def test_a_host_name_has_a_socket_for_each_address() -> None:
    found = listening_sockets("localhost", free_port())
    try:
        assert {each.getsockname()[0] for each in found} <= {"127.0.0.1", "::1"}
        assert found
    finally:
        for each in found:
            each.close()


def test_an_address_in_use_or_unknown_is_one_line(tmp_path: Path) -> None:
    with taken_port() as port:
        arguments = ["serve", "--port", str(port), "--root", str(tmp_path / "served")]
        result = CliRunner().invoke(cli, arguments, prog_name="budgetplan")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"cannot serve at 127.0.0.1:{port} (Address already in use" in line
    with pytest.raises(UsageError, match="cannot serve at no such host:80"):
        listening_sockets("no such host", 80)


def test_the_number_of_questions_at_once_has_a_limit() -> None:
    for command in ("serve", "mcp"):
        result = CliRunner().invoke(cli, [command, "--at-once", "1000000000"])
        assert result.exit_code == 2
        assert "1<=x<=64" in result.stderr


SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@SIGNALS
def test_a_signal_ends_the_service_with_its_exit_code(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    port, before = free_port(), signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop_when_it_answers() -> None:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop_when_it_answers, daemon=True)
    thread.start()
    try:
        arguments = ["serve", "--port", str(port), "--root", str(tmp_path)]
        result = CliRunner().invoke(cli, arguments, prog_name="budgetplan")
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert result.exit_code == code
    assert [line for line in result.stderr.splitlines() if line.startswith("budgetplan: stopped")]


@SIGNALS
def test_a_signal_ends_the_server_of_a_language_model_that_says_nothing(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mcp")
    silence, end = os.pipe()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop_when_it_reads() -> None:
        while not any(each.name.startswith("AnyIO") for each in threading.enumerate()):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    try:
        with os.fdopen(silence) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            threading.Thread(target=stop_when_it_reads, daemon=True).start()
            with pytest.raises(ClickException) as stopped:
                cli.main(["mcp", "--root", str(tmp_path)], standalone_mode=False)
            os.close(end)  # the thread that reads ends, too
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.exit_code == code
    assert stopped.value.message.startswith("stopped")
