"""The Host header without API keys: names that a stranger could register are refused.

A web page can give its own name an address of this machine ("DNS rebinding"); the browser then lets it read the replies.
Such a request has the page's name as its Host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".svc")
"""Endings that are not given to the public: RFC 6761 and 6762, ICANN's .internal, services in a cluster."""


def is_trusted(header: str, allowed: Iterable[str]) -> bool:
    """Whether a Host header names an address, a machine of this network, or one of the allowed hosts.

    Without the header a request is trusted: browsers always send it, HTTP/1.0 need not.
    """
    host = _name(header)
    if not header or host in {name.lower() for name in allowed}:
        return True
    if "." not in host and ":" not in host:
        return bool(host)
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return host.endswith(PRIVATE_SUFFIXES)


def _name(header: str) -> str:
    """The name without the port: "[::1]:8000" is ::1."""
    text = header.strip().lower().rstrip(".")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0].rstrip(".") if text.count(":") == 1 else text
