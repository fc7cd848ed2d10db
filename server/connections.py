"""Counts the connections that carry data now, from the kernel's socket table: TorchServe reports an upload only when it is complete."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

RECENT_MILLISECONDS = 400
"""A connection that received data within this time counts as busy."""

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, linux/tcp.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST, _NLM_F_DUMP, _NLMSG_ERROR, _NLMSG_DONE = 0x1, 0x300, 2, 3
_INET_DIAG_INFO = 2
_ESTABLISHED_OR_CLOSE_WAIT = 1 << 1 | 1 << 8
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48s")
_MESSAGE = struct.Struct("=4x2s46x4xII8x")
_ATTRIBUTE = struct.Struct("=HH")
_LAST_DATA_RECEIVED = 52


def busy_connections(port: int) -> int:
    """The number of TCP connections to the local `port` that have unread or unsent bytes, or received data a moment ago.

    Uses the kernel's sock_diag interface. Returns 0 where the kernel does not answer: some sandboxes forbid netlink sockets.
    """
    try:
        return sum(_is_busy(message) for family in (socket.AF_INET, socket.AF_INET6) for message in _messages(family, port))
    except OSError:
        return 0


def _messages(family: int, port: int) -> Iterator[bytes]:
    """One inet_diag_msg, with its attributes, for each connection to the local `port`."""
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), _ESTABLISHED_OR_CLOSE_WAIT, bytes(48))
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(5)
        kernel.sendall(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, flags, 0, 0) + request)
        while True:
            for kind, message in _split(kernel.recv(1 << 18)):
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return
                if int.from_bytes(_MESSAGE.unpack_from(message)[0], "big") == port:
                    yield message


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the content of each netlink message."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _is_busy(message: bytes) -> bool:
    _, unread, unsent = _MESSAGE.unpack_from(message)
    offset = _MESSAGE.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if kind == _INET_DIAG_INFO:
            (idle,) = struct.unpack_from("=I", message, offset + _ATTRIBUTE.size + _LAST_DATA_RECEIVED)
            return bool(unread or unsent or idle < RECENT_MILLISECONDS)
        offset += (length + 3) & ~3
    return bool(unread or unsent)
