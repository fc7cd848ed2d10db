"""What all tables share: Markdown, the marker lines of a page, and how a median, a goal and a duration are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..work import ROOT

README, MEASURED = ROOT / "README.md", ROOT / "docs" / "measured.md"


@dataclass(frozen=True, slots=True)
class Block:
    """The generated part of a page, between the lines `<!-- NAME -->` and `<!-- /NAME -->`."""

    name: str

    @property
    def begin(self) -> str:
        """The line before the block, with its line end."""
        return f"<!-- {self.name} -->\n"

    @property
    def end(self) -> str:
        """The line after the block."""
        return f"<!-- /{self.name} -->"

    def text(self, page: str) -> str:
        """The block's present text; empty when the page has no such block."""
        return page.partition(self.begin)[2].partition(self.end)[0]

    def put(self, path: Path, text: str) -> None:
        """Replace the block's text in a file. Raises ValueError when the file has no such block."""
        page = path.read_text(encoding="utf-8")
        if self.begin not in page or self.end not in page:
            raise ValueError(f"{path.name} needs the lines {self.begin.strip()} and {self.end}")
        head, _, rest = page.partition(self.begin)
        path.write_text(head + self.begin + text + self.end + rest.partition(self.end)[2], encoding="utf-8")


def markdown(titles: dict[str, str], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table. `titles`: each column's title and its alignment, such as `--:`."""
    lines = [tuple(title.strip() for title in titles), tuple(titles.values()), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def median(value: dict[str, float], digits: int, unit: str = "") -> str:
    """The median of a spread, with the lowest and the highest round in brackets."""
    return f"{value['median']:.{digits}f}{unit} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"


def verdict(met: bool) -> str:
    """How a table marks a goal."""
    return "met" if met else "**missed**"


def threads(count: int) -> str:
    """Such as `1 thread` or `2 threads`."""
    return f"{count} thread{'s' * (count > 1)}"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:g} h"
