"""Serves optuna-dashboard behind checks of host, origin, token and method.

The pages can be read only, unless writing is allowed. A browser cannot send the header
``Authorization`` with a link. So a token may also stand in the address once
(``http://HOST:PORT/?token=TOKEN``): the answer stores it in a cookie that scripts and other sites
cannot use, and redirects to the first page.
"""

from __future__ import annotations

import http.cookies
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from http import HTTPStatus
from selectors import EVENT_READ, DefaultSelector
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from planner.service.access import Refusal, check_request
from planner.service.listening import listening_sockets

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

COOKIE = "budgetplan_token"
"""Name of the cookie that holds the token."""

READING = ("GET", "HEAD")
"""Methods of HTTP that change nothing."""


class GuardedDashboard:
    """A WSGI application that passes allowed requests on.

    Args:
        app: the dashboard.
        hosts: allowed names of this service.
        token: token that every request must carry; None for none.
        allow_writes: whether requests may change the study.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        hosts: frozenset[str],
        token: str | None = None,
        allow_writes: bool = False,
    ) -> None:
        self._app, self._hosts, self._token = app, hosts, token
        self._allow_writes = allow_writes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        try:
            self._check(environ)
        except Refusal as refusal:
            start_response(
                _status_line(refusal.status), [("Content-Type", "text/plain; charset=utf-8")]
            )
            return [f"{refusal.message}\n".encode()]
        if self._token is not None and "token" in parse_qs(environ.get("QUERY_STRING", "")):
            start_response(
                _status_line(HTTPStatus.SEE_OTHER),
                [
                    # The path of the request is not repeated: a browser reads "//HOST" as the
                    # address of another site.
                    ("Location", "/"),
                    ("Set-Cookie", f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"),
                ],
            )
            return [b""]
        return self._app(environ, _without_foreign_readers(start_response))

    def _check(self, environ: WSGIEnvironment) -> None:
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
            for name, value in environ.items()
            if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        }
        method = environ["REQUEST_METHOD"]
        if self._token is not None and "authorization" not in headers:
            headers["authorization"] = f"Bearer {self._token_of(environ)}"
        check_request(
            headers,
            hosts=self._hosts,
            token=self._token,
            has_body=self._allow_writes and method in ("POST", "PUT"),
        )
        if method not in READING and not self._allow_writes:
            raise Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "the dashboard is read-only; start it with --allow-writes",
            )

    def _token_of(self, environ: WSGIEnvironment) -> str:
        """Return the token in the address, or else in the cookie."""
        given = parse_qs(environ.get("QUERY_STRING", "")).get("token")
        if given:
            return str(given[0])
        cookies = http.cookies.SimpleCookie()
        try:
            cookies.load(environ.get("HTTP_COOKIE", ""))
        except http.cookies.CookieError:
            return ""
        return str(cookies[COOKIE].value) if COOKIE in cookies else ""


def _status_line(status: HTTPStatus) -> str:
    return f"{status.value} {status.phrase}"


def _without_foreign_readers(start_response: StartResponse) -> Any:
    """Drop the header by which optuna-dashboard lets every site read artifacts."""

    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        kept = [pair for pair in headers if pair[0].lower() != "access-control-allow-origin"]
        return start_response(status, kept, *rest)

    return start


class _QuietHandler(WSGIRequestHandler):
    """A handler that prints no line for each request: an address may hold the token."""

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


class _SocketServer(ThreadingMixIn, WSGIServer):
    """A server on a socket that listens already, with a thread for each request.

    Args:
        listening: the socket; it is closed with the server.
        app: the application.
    """

    daemon_threads = True
    timeout = 0.0  # a request is taken only after the selector has seen it

    def __init__(self, listening: socket.socket, app: WSGIApplication) -> None:
        name, port = listening.getsockname()[:2]
        super().__init__((name, port), _QuietHandler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.server_name, self.server_port = listening, name, port
        self.setup_environ()
        self.set_app(app)


def serve_app(
    app: WSGIApplication, *, host: str, port: int, on_ready: Callable[[int], None]
) -> None:
    """Serve an application at each address of a host name until interrupted.

    Args:
        app: the application.
        host: name or address to listen on.
        port: port to listen on; 0 for a free one.
        on_ready: called with the port once requests are answered.

    Raises:
        UsageError: the address cannot be used.
    """
    with ExitStack() as opened, DefaultSelector() as selector:
        servers = [
            opened.enter_context(_SocketServer(each, app)) for each in listening_sockets(host, port)
        ]
        for server in servers:
            selector.register(server, EVENT_READ, server)
        on_ready(servers[0].server_port)
        while True:
            for key, _ in selector.select():
                key.data.handle_request()
