"""The image is built once for all tests. What they measure becomes bench/results/image.json when all have passed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import results
from bench.report import image as image_report
from tests.deploy.binaries import binary
from tests.deploy.containers import podman
from tests.image.containers import ARGUMENTS, NAME, base_image, build, copy_context, inspect, layers

TAG = "first"


@pytest.fixture(scope="session")
def programs() -> None:
    """Skip the tests unless they are asked for and can run."""
    if os.environ.get("WHISPER_IMAGE_TESTS") != "1":
        pytest.skip("the image is neither built nor run: that takes 10 minutes and 8 GB, and WHISPER_IMAGE_TESTS=1 asks for it")
    for program in ("buildah", "podman"):
        binary(program, "the image is neither built nor run")


@pytest.fixture(scope="session")
def measured(programs: None, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the tests measure. Saved, with the table in docs/container.md, when none has failed."""
    origin, values = results.provenance(), dict[str, Any]()
    yield values
    if request.session.testsfailed == 0:
        versions = {
            name: subprocess.run([name, "--version"], capture_output=True, text=True).stdout.strip() for name in ("buildah", "podman")
        }
        settings = {"base": base_image(), "stand_in": any("BASE_IMAGE=" in word for word in ARGUMENTS), "model": "nano", "device": "cpu"}
        results.save(results.RESULTS, "image", origin, settings | versions, values)
        image_report.update()


@pytest.fixture(scope="session")
def context(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the build's context. At the end the images are removed; the layers stay in the cache of builds."""
    folder = tmp_path_factory.mktemp("context")
    copy_context(folder)
    yield folder
    podman("image", "rm", "--force", f"{NAME}:{TAG}", f"{NAME}:second")


@pytest.fixture(scope="session")
def image(context: Path, measured: dict[str, Any]) -> str:
    """The image's tag, after a build that used no layer of an earlier one."""
    seconds, printed = build(context, TAG, "--build-arg=VERSION=1.2.3", "--build-arg=REVISION=abc")
    (context / "build.log").write_text(printed)
    built = layers(TAG)
    measured |= {"build_s": seconds, "size": inspect(TAG)["Size"], "layers": [asdict(layer) for layer in built]}
    return TAG
