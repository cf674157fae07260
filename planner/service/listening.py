"""Sockets that listen, opened before a server starts: an address in use is one line."""

from __future__ import annotations

import errno
import socket

from profiler.errors import UsageError


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of a host name (``localhost`` has one for IPv4 and IPv6).

    An address of a family that this machine does not have is left out, if there is another.

    Args:
        host: name or address to listen on.
        port: port to listen on.

    Raises:
        UsageError: the host name is unknown, or an address cannot be used.
    """
    found: list[socket.socket] = []
    failure: OSError | None = None
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot serve at {host}:{port} ({_failure_text(error)})") from error
    for family, _, _, _, address in dict.fromkeys(infos):
        try:
            found.append(socket.create_server(address, family=family))
        except OSError as error:
            failure = error
            if error.errno == errno.EADDRINUSE:
                break
    if not found or (failure is not None and failure.errno == errno.EADDRINUSE):
        for each in found:
            each.close()
        assert failure is not None
        raise UsageError(
            f"cannot serve at {host}:{port} ({_failure_text(failure)}); give another address"
        ) from failure
    return found


def _failure_text(error: OSError | UnicodeError) -> str:
    return getattr(error, "strerror", None) or str(error)
