"""Checks before TorchServe starts: finds what would make it fail or hang, and reports it in one line."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from whispercore.errors import ConfigurationError
from whispercore.settings import unknown_variables

from .configuration import Address, Configuration, StartError
from .management import SOCKET_FILE
from .torchserve import PREFIX

MEGABYTE = 1_000_000
FREE_BYTES = 200 * MEGABYTE
LONGEST_TEMP = 107 - len(f"/{PREFIX}12345678/{SOCKET_FILE}")
"""Bytes of the path of TEMP: sockets lie in a folder in it, and a socket's path has at most 107 bytes (unix(7))."""


def check(configuration: Configuration) -> None:
    """Check the ports and the folders. Raises StartError for the first that cannot be used."""
    for address in (configuration.inference, configuration.management, configuration.metrics, configuration.gateway):
        if address:
            check_free(address)
    for folder, variable in ((configuration.logs, "LOG_LOCATION"), (configuration.temporary, "TEMP")):
        _check_writable(folder, variable)
    _check_length(configuration.temporary)


def check_variables(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The WHISPER_ variables without a meaning. Raises StartError for a variable that resembles a known one, as a misspelling does."""
    try:
        return unknown_variables(environ)
    except ConfigurationError as error:
        raise StartError(error.message) from None


def check_free(address: Address) -> None:
    """Raise StartError when the port is taken."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # TorchServe sets this option too: lingering connections of an earlier server do not block the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise StartError(
                f"cannot listen on {address.host}:{address.port} ({reason}): stop what uses the port, or choose another with"
                f" {address.variable}=http://{address.host}:PORT"
            ) from None


def _check_writable(folder: Path, variable: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StartError(f"{folder} cannot be made ({error.strerror}): set {variable} to a folder that can be written") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartError(f"{folder} cannot be written: set {variable} to a folder that can")
    if free < FREE_BYTES:
        raise StartError(
            f"{folder} has {free // MEGABYTE} MB free, {FREE_BYTES // MEGABYTE} MB are needed: free some, or set {variable} to another disk"
        )


def _check_length(temporary: Path) -> None:
    if len(os.fsencode(temporary)) > LONGEST_TEMP:
        raise StartError(f"{temporary} is too long a path for sockets: set TEMP to a folder whose path has at most {LONGEST_TEMP} bytes")
