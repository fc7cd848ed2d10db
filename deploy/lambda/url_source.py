"""Fetches a recording that a payload names by URL, from public addresses only.

The function can reach more than its caller: Lambda's own Runtime API on the loopback, and the services of its VPC. So a
name is resolved once, every address that is not public is refused, the connection goes to the address that was
checked, and redirects are checked as the first URL is.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

import urllib3
from function_errors import SourceError, Unavailable

from whispercore.api.values import for_message
from whispercore.errors import TooLarge

_REDIRECTS = 5
_SECONDS = 30.0
"""For a connection, and for each piece of the body."""
_PIECE = 1 << 20


def fetch(url: str, max_bytes: int) -> bytes:
    """The bytes at an https URL.

    Raises SourceError for another URL or a status that is no success, TooLarge beyond `max_bytes`, Unavailable when
    the server does not answer.
    """
    for _ in range(_REDIRECTS + 1):
        response = _open(url)
        try:
            if response.status in (301, 302, 303, 307, 308) and (location := response.headers.get("location")):
                url = urljoin(url, location)
                continue
            if response.status != 200:
                raise SourceError(f"url: its server answers with status {response.status}, not with a recording", param="url")
            return _read(response, max_bytes)
        finally:
            response.close()
    raise SourceError(f"url: it is redirected more than {_REDIRECTS} times", param="url")


def _open(url: str) -> urllib3.BaseHTTPResponse:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError:
        parts, host, port = urlsplit(""), "", 443
    if parts.scheme != "https" or not host or parts.username:
        raise SourceError(f"url must be an https address without a user name; got {for_message(url)}", param="url")
    pool = urllib3.HTTPSConnectionPool(_public_address(host, port), port, server_hostname=host, assert_hostname=host)
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    timeout = urllib3.Timeout(connect=_SECONDS, read=_SECONDS)
    try:
        headers = {"host": parts.netloc, "accept-encoding": "identity"}
        return pool.urlopen("GET", target, headers=headers, redirect=False, retries=False, timeout=timeout, preload_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable(f"url: {for_message(host)} does not answer ({type(error).__name__})") from None


def _public_address(host: str, port: int) -> str:
    """An address of the host. Raises SourceError when any of its addresses is not public."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise SourceError(f"url: there is no host {for_message(host)}", param="url") from None
    if not all(ipaddress.ip_address(address.partition("%")[0]).is_global for address in found):
        raise SourceError(f"url: {for_message(host)} is not a public address", param="url")
    return min(found, key=lambda address: ":" in address)  # most functions have no IPv6


def _read(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in response.stream(_PIECE):
            size += len(piece)
            if size > max_bytes:
                raise TooLarge(f"the recording at the url has more than {max_bytes:,} bytes", param="url")
            pieces.append(piece)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable(f"url: the transfer broke off before its end ({type(error).__name__})") from None
    return b"".join(pieces)
