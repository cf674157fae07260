"""Addresses that servers listen on, and the end of ``serve`` by signals."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from click import ClickException
from click.testing import CliRunner

from planner.cli import cli
from planner.service.access import check_address, is_loopback
from planner.service.dashboard_server import serve_app
from planner.service.listening import listening_sockets
from profiler.errors import UsageError


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with taken_port() as port:
        return port


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


LOOPBACK_ADDRESSES = {"127.0.0.1", "::1"} if has_ipv6() else {"127.0.0.1"}


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """``localhost`` has an address of each family, which not every hosts file says."""
    known = socket.getaddrinfo

    def found(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if host != "localhost":
            return known(host, port, *args, **options)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)


@pytest.mark.usefixtures("two_addresses")
def test_a_host_name_has_a_socket_for_each_address() -> None:
    port = free_port()
    for asked in (port, 0):
        found = listening_sockets("localhost", asked)
        try:
            names = [each.getsockname()[:2] for each in found]
            assert {name for name, _ in names} == LOOPBACK_ADDRESSES
            assert len({number for _, number in names}) == 1
            for name in names:
                socket.create_connection(name, 10).close()
        finally:
            for each in found:
                each.close()
        assert asked in (0, names[0][1])


@pytest.mark.usefixtures("two_addresses")
def test_the_dashboard_answers_at_each_address() -> None:
    ports: queue.Queue[int] = queue.Queue()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"a page"]

    options = {"host": "localhost", "port": 0, "on_ready": ports.put}
    threading.Thread(target=serve_app, args=(app,), kwargs=options, daemon=True).start()
    port = ports.get(timeout=30)
    for address in LOOPBACK_ADDRESSES:
        connection = HTTPConnection(address, port, timeout=30)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"a page"
        connection.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("LOCALHOST", True), ("LocalHost.", True), ("127.0.0.1", True),
        ("127.0.0.2", True), ("::1", True), ("0:0:0:0:0:0:0:1", True), ("0.0.0.0", False),
        ("::", False), ("192.168.0.1", False), ("localhost.example", False), ("", False),
        ("127.0.0.1.example", False),
    ],
)  # fmt: skip
def test_only_this_machine_needs_no_token(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected
    with contextlib.nullcontext() if expected else pytest.raises(UsageError, match="token"):
        check_address(host, None)
    check_address(host, "a-token")


@pytest.mark.parametrize("host", ["LOCALHOST", "::1"])
@pytest.mark.parametrize("command", ["serve", "dashboard"])
def test_every_loopback_host_is_served_without_a_token(
    command: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both commands get as far as the port, which is taken."""
    if host == "::1" and host not in LOOPBACK_ADDRESSES:
        pytest.skip("this machine has no IPv6")
    monkeypatch.setattr("planner.search.dashboard.dashboard_app", lambda url: None)
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = str(server.getsockname()[1])
        where = ["--root", str(tmp_path)] if command == "serve" else ["--storage", "sqlite://"]
        result = CliRunner().invoke(cli, [command, "--host", host, "--port", port, *where])
    shown = "[::1]" if host == "::1" else host
    assert f"cannot serve at {shown}:{port} (Address already in use" in result.stderr


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
