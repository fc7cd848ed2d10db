"""The README's commands, run unchanged against this run's server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.serve.server import ROOT, Server

# Commands of the README's shell blocks that are not run here, and where they are tested.
ELSEWHERE = {
    "./serve.sh": "the server under test was started by it",
    "WHISPER_MODEL=large-v3-turbo ./serve.sh": "weights of 1.6 GB; tests/unit/clients/test_download_model.py downloads from a local server",
    "python3 clients/download_audio.py URL": "a page of the internet; tests/unit/clients/test_transcribe.py downloads from a local server",
    "docker build": "tests/unit/server/test_dockerfile.py",
    "docker run": "tests/unit/server/test_dockerfile.py",
}
# The user's recordings, and the samples that replace them.
OWN = {"meeting.mp3": "samples/timer.flac", "podcasts/": "samples/"}


def commands() -> list[str]:
    """The lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def is_elsewhere(command: str) -> bool:
    return any(command == other or (other.startswith("docker") and command.startswith(other)) for other in ELSEWHERE)


def test_every_exception_is_still_in_the_readme() -> None:
    present = [other for other in ELSEWHERE if any(command.startswith(other) for command in commands())]
    assert present == list(ELSEWHERE)


@pytest.mark.parametrize("command", [command for command in commands() if not is_elsewhere(command)])
def test_the_command_works(server: Server, command: str, tmp_path: Path) -> None:
    program = re.split(r"[ |]", command)[0]
    if program == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not installed on this machine")
    adapted = command.replace("http://localhost:8080/predictions/whisper", server.url).replace(
        "http://localhost:8000", f"http://127.0.0.1:{server.gateway_port}"
    )
    adapted = adapted.replace("--output-dir subtitles", f"--output-dir {tmp_path}")
    for own, sample in OWN.items():
        adapted = adapted.replace(own, sample)
    if program == "python3":
        adapted += f" --url {server.url}"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", adapted], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    check(command, done.stdout)
    if "--output-dir" in command:
        expected = {Path(recording["file"]).stem for recording in json.loads((ROOT / "samples" / "transcripts.json").read_text())}
        assert {path.stem for path in tmp_path.glob("*.srt")} == expected


def check(command: str, output: str) -> None:
    """Check the command's output."""
    expected = {recording["file"]: recording["text"] for recording in json.loads((ROOT / "samples" / "transcripts.json").read_text())}
    if "--output-dir" in command:
        assert not output
    elif "response_format=srt" in command:
        assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n", output)
    elif "text/plain" in command:
        assert output.strip() == expected["code.ogg"]
    elif command.startswith("curl"):
        assert json.loads(output)["text"] == expected["timer.flac"]
    elif "bulk_request" in command:
        assert "p99" in output
    else:
        assert output.strip() == expected["timer.flac"]


def test_the_example_reply_is_the_servers_reply(server: Server) -> None:
    """With all times; the README marks what it leaves out by "…"."""
    shown = json.loads(re.search(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1])  # type: ignore[index]
    with (ROOT / "samples" / "timer.flac").open("rb") as sound:
        reply = requests.post(server.url, data=sound, headers={"Content-Type": "audio/flac"}, timeout=300).json()
    (segment,), (warning,) = shown.pop("segments"), shown.pop("warnings")
    assert segment.pop("…") == "…" and segment.items() <= reply.pop("segments")[0].items()
    assert reply.pop("warnings")[0].startswith(warning.removesuffix("…"))
    assert shown == reply
