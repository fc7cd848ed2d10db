"""Imports point one way only (DESIGN), and the core knows no server, no cloud and no web page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "whispercore"
FORBIDDEN = {"ts", "boto3", "ray", "gradio", "requests", "rich", "yt_dlp"}
LAYERS = (
    ("types", "errors"),
    ("settings", "options", "tokenizer", "languages"),
    ("values", "fields", "models", "multipart", "wire", "source", "clock", "mixing", "levels", "tracks"),
    ("audio", "silero", "vad", "windows", "devices"),
    ("checkpoints",),
    ("engines",),
    ("backlog", "scheduler", "reference"),
    ("words", "hallucinations", "subtitles", "formats"),
    ("pack",),
    ("spoken", "stitch"),
    ("coverage", "sentences"),
    ("longform",),
    ("sequential",),
    ("transcriber",),
    ("mailbox",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def module(path: Path) -> str:
    """A file's name on the road: its own, or its folder's."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names of all that a file imports, wherever in it."""
    package = ["whispercore", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            yield from (f"{origin}.{name.name}" for name in node.names)


def own(path: Path) -> set[str]:
    """The core's modules that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("whispercore.")} - {"__version__"}


def test_there_is_something_to_check() -> None:
    assert len(FILES) >= 8
    assert own(SOURCE / "formats.py") == {"errors", "models", "options", "subtitles", "tokenizer", "types", "values", "wire"}
    assert own(SOURCE / "engines" / "__init__.py") >= {"settings", "types"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_file_has_its_place(path: Path) -> None:
    assert module(path) in RANK, f"{path.name} is on no layer: give it one here and in the design"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    rank = RANK.get(module(path), len(LAYERS))
    wrong = {name for name in own(path) if RANK.get(name, len(LAYERS)) > rank}
    assert not wrong, f"{module(path)} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_core_knows_no_adapter(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN


def test_no_two_modules_import_each_other() -> None:
    links = {(module(path), name) for path in FILES for name in own(path) if name != module(path)}
    assert not {(one, other) for one, other in links if (other, one) in links}
