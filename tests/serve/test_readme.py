"""The README's commands, run as they stand, against this run's server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.server import ROOT, Server

# What is not run here, and why; everything else in the README's shell blocks is.
ELSEWHERE = {
    "./serve.sh": "the server under test was started by it",
    "WHISPER_MODEL=large-v3-turbo ./serve.sh": "weights of 1.6 GB",
    "python clients/download_model.py large-v3-turbo": "weights of 1.6 GB; tests/unit/test_download_model.py downloads from a local server",
    "python clients/download_audio.py URL": "a page of the internet; tests/unit/test_clients.py downloads from a local server",
    "pip install -r clients/requirements.txt": "the tests' environment has them",
    "docker build": "tests/unit/test_dockerfile.py",
    "docker run": "tests/unit/test_dockerfile.py",
}


def commands() -> list[str]:
    """The lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def is_elsewhere(command: str) -> bool:
    return any(command == known or (known.startswith("docker") and command.startswith(known)) for known in ELSEWHERE)


def test_every_exception_is_still_in_the_readme() -> None:
    found = [known for known in ELSEWHERE if any(command.startswith(known) for command in commands())]
    assert found == list(ELSEWHERE)


@pytest.mark.parametrize("command", [command for command in commands() if not is_elsewhere(command)])
def test_the_command_works(server: Server, command: str, tmp_path: Path) -> None:
    program = re.split(r"[ |]", command)[0]
    if program == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not installed on this machine")
    here = command.replace("http://localhost:8080/predictions/whisper", server.url)
    if program == "python":
        here += f" --url {server.url}"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", here], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    check(command, done.stdout)


def check(command: str, said: str) -> None:
    """What the reply must be, by what the command asks for."""
    expected = {recording["file"]: recording["text"] for recording in json.loads((ROOT / "samples" / "transcripts.json").read_text())}
    if "response_format=srt" in command:
        assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n", said)
    elif "text/plain" in command:
        assert said.strip() == expected["code.ogg"]
    elif command.startswith("curl"):
        assert json.loads(said)["text"] == expected["timer.flac"]
    elif "bulk_request" in command:
        assert "p99" in said
    else:
        assert expected["timer.flac"] in said
