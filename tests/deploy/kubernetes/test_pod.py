"""The chart's pod, run by podman from the rendered manifest: the real server, with the manifest's user, volumes and limits."""

from __future__ import annotations

import json
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.binaries import ROOT, binary
from tests.deploy.containers import SERVER_IMAGE, logs, need_images, podman
from tests.deploy.kubernetes.manifests import render
from tests.serve.server import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.serve]
CONTAINER = "whisper-test-whisper"


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pod, ready. It is a pod of its own, since podman restarts those of a deployment for ever."""
    need_images(SERVER_IMAGE)
    image, tag = SERVER_IMAGE.split(":")
    template = render("--set", f"image.repository={image},image.tag={tag},resources.requests.cpu=2")["Deployment"]["spec"]["template"]
    spec: dict[str, Any] = json.loads(json.dumps(template["spec"]))
    spec["restartPolicy"] = "Never"
    file = tmp_path_factory.mktemp("pod") / "pod.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "whisper-test"}, "spec": spec}))
    done = podman("play", "kube", str(file))
    try:
        assert done.returncode == 0, done.stderr
        wait_for(lambda: "ready after" in logs(CONTAINER) or not _runs(), 300, "the server is ready")
        assert _runs(), logs(CONTAINER)
        yield file
    finally:
        podman("play", "kube", "--down", str(file))


def _runs() -> bool:
    return podman("container", "inspect", "--format", "{{.State.Running}}", CONTAINER).stdout.strip() == "true"


def inside(command: str) -> str:
    done = podman("exec", CONTAINER, "sh", "-c", command)
    return done.stdout + done.stderr


def open_requests() -> float:
    """How many requests are open in the worker."""
    line = inside("curl --silent http://127.0.0.1:8000/metrics | grep '^whisper_open_requests'")
    return float(line.split()[-1]) if line else 0.0


def test_the_probes_are_answered(pod: Path) -> None:
    for path in ("/health/ready", "/health/live"):
        assert inside(f"curl --silent --output /dev/null --write-out '%{{http_code}}' http://127.0.0.1:8000{path}") == "200"


def test_the_pod_transcribes(pod: Path) -> None:
    reply = json.loads(inside("curl --silent --form file=@samples/timer.flac http://127.0.0.1:8000/v1/audio/transcriptions"))
    assert reply["text"] == "Set a timer for five minutes."


def test_it_runs_without_rights(pod: Path) -> None:
    assert inside("id --user").strip() == "1000" and inside("id --group").strip() == "0"
    assert "Read-only file system" in inside("touch /opt/whisper/x")
    assert inside("grep CapEff /proc/1/status").split() == ["CapEff:", "0000000000000000"]
    assert inside("grep Seccomp: /proc/1/status").split() == ["Seccomp:", "2"]


def test_the_threads_follow_the_requested_processors(pod: Path) -> None:
    assert ", threads 2," in logs(CONTAINER)


def test_the_conversion_of_the_image_is_used(pod: Path) -> None:
    assert "/var/lib/whisper/models/" in logs(CONTAINER)
    assert not inside("ls /state").split() or "models" not in inside("ls /state").split()


def test_only_the_front_door_listens_beyond_the_pod(pod: Path) -> None:
    """/proc/net/tcp has each listening socket (state 0A) with its address in hexadecimal."""
    rows = [row.split() for row in inside("cat /proc/net/tcp").splitlines()[1:]]
    listening = {(row[1].split(":")[0], int(row[1].split(":")[1], 16)) for row in rows if row[3] == "0A"}
    assert {port for address, port in listening if address == "00000000"} == {8000}


def test_an_open_request_is_answered_before_the_pod_ends(pod: Path, tmp_path: Path) -> None:
    """The last test: it stops the container, as Kubernetes does after preStop."""
    recording = tmp_path / "long.wav"
    with wave.open(str(ROOT / "samples" / "stereo.wav")) as short, wave.open(str(recording), "wb") as long:
        long.setparams(short.getparams())
        frames = short.readframes(short.getnframes())
        for _ in range(int(300 * short.getframerate() / short.getnframes())):
            long.writeframes(frames)
    assert podman("cp", str(recording), f"{CONTAINER}:/tmp/long.wav").returncode == 0
    request = ("curl", "--silent", "--form", "file=@/tmp/long.wav", "http://127.0.0.1:8000/v1/audio/transcriptions")
    command = [binary("podman", "no container is run"), "exec", CONTAINER, *request]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        wait_for(lambda: open_requests() == 1, 60, "the request is open")
        assert client.poll() is None
        assert podman("stop", "--time", "325", CONTAINER, timeout=330).returncode == 0
        reply, _ = client.communicate(timeout=30)
    assert json.loads(reply)["usage"]["seconds"] > 290
    assert podman("container", "inspect", "--format", "{{.State.ExitCode}}", CONTAINER).stdout.strip() == "0", logs(CONTAINER)
