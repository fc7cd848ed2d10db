"""Imports point one way, no two files form a circle, and the core knows no server, no cloud and no web page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from whispercore.catalogue import ENGINES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "whispercore"
FORBIDDEN = {"ts", "boto3", "ray", "gradio", "fastapi", "requests", "rich", "yt_dlp"}
GROUND = (
    ("types", "errors", "catalogue"),
    ("openai_whisper",),
    ("settings", "options", "tokenizer", "languages"),
    ("devices",),
)
"""The files that every folder may import, lowest first."""
WINGS = (
    ("audio", "api"),
    ("transcript", "checkpoints"),
    ("engines",),
    ("serving",),
    ("torchserve",),
)
"""The folders, lowest first. A folder may import those below it and the ground, and none beside it."""
RANK = {name: rank for rank, layer in enumerate((*GROUND, *WINGS)) for name in layer}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def wing(path: Path) -> str:
    """The folder that a file is in, or the name of a file of the ground."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def dotted(path: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in SOURCE.rglob("*.py")}


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names of all that a file imports, anywhere in it, also inside functions."""
    package = path.relative_to(SOURCE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            yield from (f"{origin}.{name.name}" for name in node.names)


def modules(path: Path) -> set[str]:
    """The core's files that a file imports, by their dotted names: `from .rules import batch_key` is engines.rules."""
    found = set()
    for name in imported(path):
        origin = name.rpartition(".")[0]
        found |= {known for known in (name, origin) if known in MODULES} - ({origin} if name in MODULES else set())
    return found - {"whispercore", dotted(path)}


def wings(path: Path) -> set[str]:
    """The folders and the files of the ground that a file imports."""
    return {name.split(".")[1] for name in modules(path)}


def engine_of(module: str) -> str | None:
    """The engine that a module, by its dotted name, belongs to."""
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "engines" and parts[2] in ENGINES else None


def test_there_is_something_to_check() -> None:
    assert len(FILES) >= 60
    assert modules(SOURCE / "engines" / "pytorch" / "encoder.py") >= {"whispercore.engines.pytorch.model"}
    assert wings(SOURCE / "transcript" / "sequential.py") >= {"audio", "options", "types"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_file_has_its_place(path: Path) -> None:
    assert wing(path) in RANK, f"{path.name} is in no wing: give it a layer here"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    rank = RANK[wing(path)]
    allowed = {name for name in RANK if RANK[name] < rank} | {wing(path)}
    wrong = wings(path) - allowed
    assert not wrong, f"{path.relative_to(SOURCE)} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_core_knows_no_adapter(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN


@pytest.mark.parametrize("path", [path for path in FILES if engine_of(dotted(path))], ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_engine_imports_another(path: Path) -> None:
    """What engines share lies beside them: rules, batched, alignment, whisper_task, noise, pytorch/."""
    others = {engine_of(name) for name in modules(path)} - {engine_of(dotted(path)), None}
    assert not others, f"{path.relative_to(SOURCE)} must not import engine {', '.join(map(str, others))}"


def test_no_files_form_a_circle() -> None:
    """A package's face counts as a file: what it imports must not import the face."""
    arrows = {name: modules(path) for name, path in MODULES.items()}
    finished: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in finished:
            for target in sorted(arrows[name]):
                walk(target, (*trail, name))
            finished.add(name)

    for name in sorted(arrows):
        walk(name, ())
