"""README and docs/: links resolve, lines are short, and every message that docs/troubleshooting.md quotes occurs in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WIDTH = 120
README_LINES = 130
CODE = ("src", "handler", "server", "gateway", "clients", "model-archiver", "serve.sh")

# The changelog is a list of past changes: its links and lines stay as they were written.
HISTORY = {ROOT / "CHANGELOG.md"}
HELD = [page for page in PAGES if page not in HISTORY]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```\n", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"^<!-- (\w+) -->\n.*?^<!-- /\1 -->\n", re.DOTALL | re.MULTILINE)
PLACEHOLDER = "…"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page with its code blocks and generated blocks replaced by empty lines, so that line numbers stay."""
    text = page.read_text(encoding="utf-8")
    for block in (CODE_BLOCK, GENERATED):
        text = block.sub(lambda found: "\n" * found[0].count("\n"), text)
    return text


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", HELD, ids=name)
def test_every_relative_link_resolves(page: Path) -> None:
    for target in LINK.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name(page)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{name(page)} links to {target}: the page has no such heading"


@pytest.mark.parametrize("page", HELD, ids=name)
def test_lines_fit_120_columns(page: Path) -> None:
    """Outside of generated blocks, tables and code blocks; the targets of links do not count."""
    lines = enumerate(prose(page).splitlines(), start=1)
    visible = {number: re.sub(r"\]\([^)\s]+\)|https?://\S+", "", line) for number, line in lines if not line.startswith("|")}
    long = {number: len(line) for number, line in visible.items() if len(line) > WIDTH}
    assert not long, f"{name(page)}: columns by line: {long}"


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_the_figures_of_the_readme_are_in_the_tables() -> None:
    """Those in the prose of its comparison with other programs; docs/measured.md and the tables are generated from the result files."""
    measured = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    section = re.search(r"^<!-- /speed -->\n(.*?)^<!-- ", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert section
    figures = re.findall(r"(?<![\w.-])\d+\.\d+%?|(?<![\w.-])\d+ s\b(?! of)", section[1])
    assert len(figures) >= 6
    assert [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", measured)] == []


@cache
def messages() -> tuple[str, ...]:
    """Every text in the code, with `…` for what it fills in."""
    files = [file for place in CODE for file in ([ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*")))]
    texts: list[str] = []
    for file in files:
        if file.suffix == ".py":
            texts += _texts(ast.parse(file.read_text(encoding="utf-8")))
        elif file.suffix == ".sh":
            script = re.sub(r"\$\(\(?[^()]*(\([^()]*\)[^()]*)*\)?\)|\$\{[^}]*\}|\$\w+", PLACEHOLDER, file.read_text(encoding="utf-8"))
            texts += re.findall(r'"([^"\n]*)"', script)
    return tuple(" ".join(text.split()) for text in texts)


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if (text := _text(node)) is not None:
            yield text


def _text(node: ast.AST) -> str | None:
    """The text that an expression makes; None when it makes none."""
    match node:
        case ast.Constant(value=str(value)):
            return re.sub(r"%(\.\d)?[sdf]", PLACEHOLDER, value)
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or PLACEHOLDER for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_text(left) or PLACEHOLDER) + (_text(right) or PLACEHOLDER)
    return None


def quoted() -> list[str]:
    """The messages in the first column of those tables whose head begins with `message`."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| message.*\n\|[-| ]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [row[1] for table in tables for row in re.finditer(r"^\| `([^`]+)` \|", table, re.MULTILINE)]


def is_in_code(message: str) -> bool:
    """Whether a text in the code begins so. `…` in the message stands for anything."""
    beginning = re.compile(".*".join(map(re.escape, message.split(PLACEHOLDER))))
    return any(beginning.match(text) for text in messages())


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_in_the_code(message: str) -> None:
    assert is_in_code(message), f"docs/troubleshooting.md quotes a message that no code has: {message}"


def test_messages_are_quoted_and_compared() -> None:
    assert len(quoted()) > 100
    assert is_in_code("the engine failed: …") and not is_in_code("the engine exploded: …")
