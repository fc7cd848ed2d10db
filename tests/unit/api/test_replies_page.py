"""docs/replies.md shows what the code renders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from gateway import refusals
from tests.unit.api.reply_examples import PAGE, examples
from whispercore import errors
from whispercore.api.routes import CONTENT_TYPES, content_type, stream_content_type
from whispercore.errors import ConfigurationError, WhisperError

TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = examples()
BLOCKS = dict(re.findall(r"^<!-- (\w+) -->\n(.*?)^<!-- /\1 -->$", TEXT, re.DOTALL | re.MULTILINE))
CORE, GATEWAY = Path(errors.__file__).parent, Path(gateway.__file__).parent
SOURCES = [path for folder in (CORE, GATEWAY) for path in folder.rglob("*.py") if path.parent != GATEWAY / "realtime"]
"""docs/realtime.md has the codes of realtime sessions, which report errors as events."""
KINDS = {
    name: kind
    for module in (errors, refusals)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, WhisperError)
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_the_code_renders(name: str) -> None:
    assert BLOCKS[name] == EXAMPLES[name], "run: PYTHONPATH=src:. python -m tests.unit.api.reply_examples"


def test_every_block_is_an_example() -> None:
    assert BLOCKS.keys() == EXAMPLES.keys()


def test_every_format_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\| `([^`]+)` \|", TEXT, re.MULTILINE)
    assert rows == [(name, content_type(name)) for name in ("json", "verbose_json", "text", "srt", "vtt", "tsv")]
    assert {name for name, _ in rows} == set(CONTENT_TYPES)
    assert stream_content_type("native") in TEXT and stream_content_type("transcriptions") in TEXT


def error_codes() -> Iterator[tuple[int, str, str]]:
    """Status, type and code of every error that a request can meet."""
    for kind in KINDS.values():
        if kind.__module__ == errors.__name__ and kind.default_code and kind is not ConfigurationError:
            yield kind.status, kind.kind, kind.default_code
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                kind = KINDS[node.func.id]
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                codes = [value.value for value in given if isinstance(value, ast.Constant)] if given else [kind.default_code]
                yield from ((kind.status, kind.kind, str(code)) for code in codes if kind is not ConfigurationError and code)


def test_every_error_code_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| `(\w+)` \|", TEXT, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert {(int(status), kind, code) for status, kind, code in rows} == set(error_codes())
