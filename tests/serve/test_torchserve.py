"""What concerns TorchServe's own ports, whatever stands before them."""

from __future__ import annotations

from pathlib import Path

import requests

from tests.serve.recordings import SAMPLES
from tests.serve.server import Server, wait_for

TIMER = (SAMPLES / "timer.flac").read_bytes()


def test_a_clients_mistake_is_not_logged_on_the_console(server: Server) -> None:
    """TorchServe logs a client that disconnects, or an invalid form, as an error with a stack trace.

    Only the log file gets it.
    """
    assert (
        requests.post(server.url, data=TIMER, headers={"Content-Type": "application/x-www-form-urlencoded"}, timeout=60).status_code == 500
    )
    wait_for(lambda: "ErrorDataDecoderException" in (server.folder / "logs/whisper.log").read_text(), 10, "the log")
    assert "ErrorDataDecoderException" not in (server.folder / "stdout").read_text()


def test_management_is_closed(server: Server) -> None:
    base = f"http://127.0.0.1:{server.management_port}/models"
    assert requests.post(f"{base}?url=http://127.0.0.1:{server.port}/x.mar", timeout=60).status_code == 405
    assert requests.delete(f"{base}/whisper", timeout=60).status_code == 405


def test_it_listens_on_loopback_only(server: Server) -> None:
    ports = {server.port, server.management_port, server.metrics_port, server.gateway_port}
    listening = [row.split()[1] for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    addresses = {address for address, _, port in (local.rpartition(":") for local in listening) if int(port, 16) in ports}
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert addresses
