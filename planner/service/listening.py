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
        port: port to listen on; 0 for a free one, the same for all addresses.

    Raises:
        UsageError: the host name is unknown, or an address cannot be used.
    """
    found: list[socket.socket] = []
    failure: OSError | None = None
    shown = host_and_port(host, port)
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot serve at {shown} ({_failure_text(error)})") from error
    for family, _, _, _, (name, _, *rest) in dict.fromkeys(infos):
        chosen = found[0].getsockname()[1] if found else port
        try:
            found.append(socket.create_server((name, chosen, *rest), family=family))
        except OSError as error:
            failure = error
            if error.errno == errno.EADDRINUSE:
                break
    if not found or (failure is not None and failure.errno == errno.EADDRINUSE):
        for each in found:
            each.close()
        assert failure is not None
        raise UsageError(
            f"cannot serve at {shown} ({_failure_text(failure)}); give another address"
        ) from failure
    return found


def host_and_port(host: str, port: int) -> str:
    """Return ``HOST:PORT`` as it is written in a URL: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _failure_text(error: OSError | UnicodeError) -> str:
    return getattr(error, "strerror", None) or str(error)
