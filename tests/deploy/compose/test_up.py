"""The whole of compose.yaml, started by podman-compose: the real server behind Caddy, scraped by Prometheus. Without Grafana."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from gateway.keys import digest_of, new_key
from tests.deploy.binaries import ROOT, binary
from tests.deploy.compose.compose_file import COMPOSE
from tests.deploy.containers import CADDY_IMAGE, PROMETHEUS_IMAGE, SERVER_IMAGE, logs, need_images, podman
from tests.serve.server import free_ports, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.serve]
PROJECT = "whisper-test"
SERVICES = ("whisper", "caddy", "prometheus")


@dataclass(frozen=True, slots=True)
class Stack:
    """The running services. `authority`: the certificate of Caddy's own authority, which clients have to trust."""

    port: int
    prometheus_port: int
    key: str
    authority: Path

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        url = f"https://localhost:{self.port}{path}"
        return requests.request(method, url, verify=str(self.authority), timeout=60, **options)

    def query(self, expression: str) -> list[dict[str, Any]]:
        reply = requests.get(f"http://127.0.0.1:{self.prometheus_port}/api/v1/query", params={"query": expression}, timeout=10)
        series: list[dict[str, Any]] = reply.json()["data"]["result"]
        return series


def container(service: str) -> str:
    return f"{PROJECT}_{service}_1"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    need_images(SERVER_IMAGE, CADDY_IMAGE, PROMETHEUS_IMAGE)
    compose = [binary("podman-compose", "compose.yaml is not started"), "--project-name", PROJECT]
    folder, key, (https, http, prometheus) = tmp_path_factory.mktemp("compose"), new_key(), free_ports(3)
    (folder / "keys.yaml").write_text(f"keys:\n  - name: alice\n    sha256: {digest_of(key)}\n")
    (folder / "password").write_text("password")
    (folder / "certificates").mkdir()
    environment = os.environ | {
        "WHISPER_IMAGE": SERVER_IMAGE,
        "CADDY_IMAGE": CADDY_IMAGE,
        "PROMETHEUS_IMAGE": PROMETHEUS_IMAGE,
        "API_KEYS": str(folder / "keys.yaml"),
        "GRAFANA_PASSWORD": str(folder / "password"),
        "CERTIFICATES": str(folder / "certificates"),
        "HTTPS_PORT": str(https),
        "HTTP_PORT": str(http),
        "PROMETHEUS_PORT": str(prometheus),
    }
    up = subprocess.run(
        [*compose, "up", "--detach", *SERVICES], cwd=COMPOSE, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        wait_for(lambda: "ready after" in logs(container("whisper")), 300, "the server is ready")
        authority = folder / "root.crt"
        copy = podman("cp", f"{container('caddy')}:/data/caddy/pki/authorities/local/root.crt", str(authority))
        assert copy.returncode == 0, copy.stderr
        yield Stack(https, prometheus, key, authority)
    finally:
        down = subprocess.run(
            [*compose, "down", "--volumes"], cwd=COMPOSE, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
    left = podman("ps", "--all", "--format", "{{.Names}}").stdout + podman("volume", "ls", "--format", "{{.Name}}").stdout
    assert PROJECT not in left, down.stdout + down.stderr


def test_a_recording_is_transcribed_over_tls(stack: Stack) -> None:
    with (ROOT / "samples" / "timer.flac").open("rb") as audio:
        headers = {"Authorization": f"Bearer {stack.key}"}
        reply = stack.ask("POST", "/v1/audio/transcriptions", files={"file": audio}, data={"model": "whisper-1"}, headers=headers)
    assert (reply.status_code, reply.json()["text"]) == (200, "Set a timer for five minutes.")


def test_a_stream_passes(stack: Stack) -> None:
    with (ROOT / "samples" / "timer.flac").open("rb") as audio:
        headers, data = {"Authorization": f"Bearer {stack.key}"}, {"model": "whisper-1", "stream": "true"}
        reply = stack.ask("POST", "/v1/audio/transcriptions", files={"file": audio}, data=data, headers=headers)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert '"transcript.text.done"' in reply.text and "Set a timer for five minutes." in reply.text


def test_without_a_key_nothing_is_transcribed(stack: Stack) -> None:
    assert stack.ask("POST", "/v1/audio/transcriptions", data={"model": "whisper-1"}).status_code == 401


def test_metrics_are_not_public(stack: Stack) -> None:
    assert stack.ask("GET", "/health/ready").status_code == 200
    assert stack.ask("GET", "/metrics").status_code == 404


def test_torchserve_is_reachable_from_its_own_container_only(stack: Stack) -> None:
    def connects(port: int) -> bool:
        command = ["python3", "-c", f"import socket; socket.create_connection(('whisper', {port}), 3)"]
        return podman("exec", container("caddy"), *command).returncode == 0

    assert [port for port in (8000, 8080, 8081, 8082) if connects(port)] == [8000]


def test_prometheus_has_the_metrics(stack: Stack) -> None:
    wait_for(lambda: bool(stack.query('whisper_ready{job="whisper"} == 1')), 60, "Prometheus has scraped the ready server")
    assert stack.query('up{job="whisper"} == 1')


def test_prometheus_has_the_rules(stack: Stack) -> None:
    groups = requests.get(f"http://127.0.0.1:{stack.prometheus_port}/api/v1/rules", timeout=10).json()["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert len(groups[0]["rules"]) == 10


def test_the_health_check_succeeds(stack: Stack) -> None:
    assert podman("healthcheck", "run", container("whisper")).returncode == 0
