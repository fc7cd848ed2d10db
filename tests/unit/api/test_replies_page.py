"""docs/replies.md shows what the code renders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.api.reply_examples import PAGE, examples
from whispercore import errors
from whispercore.api.routes import CONTENT_TYPES, content_type, stream_content_type
from whispercore.errors import ConfigurationError, WhisperError

TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = examples()
BLOCKS = dict(re.findall(r"^<!-- (\w+) -->\n(.*?)^<!-- /\1 -->$", TEXT, re.DOTALL | re.MULTILINE))
SOURCE = Path(errors.__file__).parent
KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, WhisperError)}


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
    """Status, type and code of every error of the core that a request can meet."""
    for kind in KINDS.values():
        if kind.default_code and kind is not ConfigurationError:
            yield kind.status, kind.kind, kind.default_code
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                        kind = KINDS[node.func.id]
                        yield kind.status, kind.kind, str(keyword.value.value)


def test_every_error_code_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| `(\w+)` \|", TEXT, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert {(int(status), kind, code) for status, kind, code in rows} == set(error_codes())
