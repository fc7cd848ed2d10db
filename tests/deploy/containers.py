"""Podman, and the images that the tests of deploy/ run."""

from __future__ import annotations

import subprocess

import pytest

from tests.deploy.binaries import binary
from whispercore import __version__

SERVER_IMAGE = f"localhost/whisper-torchserve:{__version__}-cpu"
"""The repository's Dockerfile, built with DEVICE=cpu and MODEL=nano."""
CADDY_IMAGE, PROMETHEUS_IMAGE = "localhost/stand-in-caddy", "localhost/stand-in-prometheus"
"""tests/deploy/compose/stand-ins/Dockerfile."""


def podman(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binary("podman", "no container is run"), *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def need_images(*images: str) -> None:
    """Skip the test where podman cannot run these images: docs/compose.md says how they are built."""
    for image in images:
        if podman("image", "exists", image).returncode:
            pytest.skip(f"no image {image}: docs/compose.md says how to build it; no container is run")
    done = podman("run", "--rm", "--network", "none", "--no-healthcheck", "--entrypoint", "true", images[0])
    if done.returncode:
        pytest.skip(f"podman cannot run a container here: {done.stderr.strip()[-300:]}")


def logs(container: str) -> str:
    done = podman("logs", container)
    return done.stdout + done.stderr
