"""Who may ask, and how much: host names, origin, token and size of a request.

A page of another site can make a browser send requests to a service on this machine. Three checks
refuse it: the name in ``Host`` must be allowed (an attacker's name can be made to point here), an
``Origin`` must be one of these names, and a question must be sent as JSON, which a foreign page
cannot do without asking first.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from profiler.errors import UsageError

LARGEST_BODY = 16 * 1024
"""Bytes of a question; the largest possible one is far smaller."""

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
"""Names by which a browser on this machine may always address a service."""


class Refusal(Exception):  # noqa: N818  # an answer to a client, not an error of this program
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: the reason, one line.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def is_loopback(host: str) -> bool:
    """Return whether no other machine can reach a host name or address."""
    name = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def allowed_hosts(host: str, others: Iterable[str] = ()) -> frozenset[str]:
    """Return the names by which clients may address a service, in lower case.

    Args:
        host: address that it listens on.
        others: further names.
    """
    return frozenset(map(str.lower, (*_LOOPBACK_NAMES, host, *others)))


def check_address(host: str, token: str | None) -> None:
    """Refuse to listen for other machines without a token.

    Raises:
        UsageError: the address is not of this machine alone, and there is no token.
    """
    if not is_loopback(host) and not token:
        raise UsageError(
            f"{host} is reachable from other machines; give a token by --token-file, or listen "
            "on 127.0.0.1"
        )


def check_request(
    headers: Mapping[str, str], *, hosts: frozenset[str], token: str | None, has_body: bool
) -> None:
    """Check the headers of a request.

    Args:
        headers: headers by name in lower case.
        hosts: allowed names of this service, without a port.
        token: token that every request must carry; None for none.
        has_body: whether the request asks a question.

    Raises:
        Refusal: 403 for a foreign host or origin, 401 for a wrong token, 413 for a large body, 415
            for a body that is not sent as JSON.
    """
    if _name_in(f"//{headers.get('host', '')}") not in hosts:
        raise Refusal(HTTPStatus.FORBIDDEN, "this host name is not allowed; see --allow-host")
    origin = headers.get("origin")
    if origin is not None and _name_in(origin) not in hosts:
        raise Refusal(HTTPStatus.FORBIDDEN, "requests of other sites are not answered")
    if token is not None:
        given = headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Refusal(HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN")
    if not has_body:
        return
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a question is sent as application/json")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:12]) > LARGEST_BODY:
        raise too_large()


def too_large() -> Refusal:
    """Return the refusal of a body above ``LARGEST_BODY``."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a question has at most {LARGEST_BODY} bytes"
    )


def _name_in(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""
