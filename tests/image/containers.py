"""Images that buildah builds from the repository's Dockerfile, and containers that podman runs from them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.binaries import ROOT
from tests.deploy.containers import logs, podman
from tests.serve.server import wait_for

NAME = "localhost/whisper-image-test"
ARGUMENTS = shlex.split(os.environ.get("WHISPER_IMAGE_BUILD", ""))
"""More arguments for `buildah bud`, such as those for another base image."""
LOCKED_DOWN = (
    "--read-only",
    "--tmpfs=/tmp",
    "--volume=/var/lib/whisper/data",
    "--network=none",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)
BUILD_SECONDS, START_SECONDS, GRACE_SECONDS = 1800, 300, 75


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that holds files: the instruction that made it, its size in bytes and its identity."""

    instruction: str
    size: int
    digest: str


def base_image() -> str:
    """The base image's name: that of the additional arguments, else the Dockerfile's."""
    given = [word.partition("=")[2] for word in ARGUMENTS if word.startswith("BASE_IMAGE=")]
    (usual,) = re.findall(r"^ARG BASE_IMAGE=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return given[-1] if given else usual


def copy_context(folder: Path) -> None:
    """Copy what git has or would add, so that a test can change a file. The times of the files stay the same.

    The Dockerfile gets a label of its own, so that the first build uses no layer of an earlier test, and the second one
    uses those of the first. `buildah bud --no-cache` does not do: a later build prefers the older layers.
    """
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    file = folder / "Dockerfile"
    file.write_text(file.read_text().replace("\nSHELL ", f"\nLABEL test={uuid.uuid4()}\nSHELL ", 1))


def build(context: Path, tag: str, *arguments: str) -> tuple[float, str]:
    """Build the image for CPUs with nano inside: the seconds it took, and what was printed."""
    fixed = ("--format=docker", "--isolation=chroot", "--network=host", "--layers", f"--tag={NAME}:{tag}")
    chosen = [f"--build-arg={argument}" for argument in ("DEVICE=cpu", "MODEL=nano", "LOCKED=1")]
    began = time.monotonic()
    command = ["buildah", "bud", *fixed, *chosen, *ARGUMENTS, *arguments, str(context)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    return time.monotonic() - began, done.stdout


def inspect(tag: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(podman("image", "inspect", f"{NAME}:{tag}").stdout)[0]
    return content


def layers(tag: str) -> list[Layer]:
    """The layers that hold files, the base first."""
    image, found = inspect(tag), list[Layer]()
    steps = json.loads(podman("history", "--no-trunc", "--format", "json", f"{NAME}:{tag}").stdout)
    digests = iter(image["RootFS"]["Layers"])
    for step, record in zip(reversed(steps), image["History"], strict=True):
        digest = None if record.get("empty_layer") else next(digests)
        if digest and step["size"]:
            found.append(Layer(_instruction(step["CreatedBy"]), step["size"], digest))
    return found


def _instruction(created_by: str) -> str:
    """An instruction as in the Dockerfile, on one line, without build arguments, mounts and the hashes of what is copied."""
    match = re.match(r"(?:\|\d+ .*?)?/bin/\w+ (?:-euo pipefail )?-c (#\(nop\) )?(.*)", created_by, re.DOTALL)
    if match is None:
        return created_by
    text = match[2] if match[1] else f"RUN {match[2]}"
    return " ".join(re.sub(r"--mount=\S+|\b(?:file|dir|multi):[0-9a-f]{64} in ", "", text).split())


@contextmanager
def running(tag: str, *arguments: str) -> Iterator[tuple[str, float]]:
    """A ready container: its name, and the seconds from its start to readiness. It is removed afterwards."""
    name, began = f"whisper-image-test-{os.getpid()}-{time.monotonic_ns()}", time.monotonic()
    done = podman("run", "--detach", f"--name={name}", *arguments, f"{NAME}:{tag}")
    assert done.returncode == 0, done.stderr
    try:
        wait_for(lambda: "ready after" in logs(name) or not runs(name), START_SECONDS, "the container is ready")
        assert runs(name), logs(name)
        yield name, time.monotonic() - began
    finally:
        podman("rm", "--force", "--volumes", "--time=5", name)


def runs(name: str) -> bool:
    return podman("container", "inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true"


def exit_status(name: str) -> int:
    return int(podman("container", "inspect", "--format", "{{.State.ExitCode}}", name).stdout)


def inside(name: str, command: str) -> str:
    """What a shell command in the container prints."""
    done = podman("exec", name, "sh", "-c", command)
    return done.stdout + done.stderr
