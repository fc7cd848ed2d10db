"""docs/reference.md is what the code says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from whispercore.api.fields import ALIASES, KNOWN_FIELDS
from whispercore.api.reference import reference
from whispercore.catalogue import ENGINES
from whispercore.options import Options, Reply

PAGE = Path(__file__).parents[3] / "docs" / "reference.md"


def test_the_reference_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python -m whispercore.api.reference > docs/reference.md"


@pytest.mark.parametrize("name", [*KNOWN_FIELDS, *ALIASES])
def test_every_field_that_a_request_may_have_is_told(name: str) -> None:
    assert f"`{name}`" in reference()


@pytest.mark.parametrize("item", [*fields(Options), *fields(Reply)], ids=lambda item: item.name)
def test_every_option_has_its_row(item: object) -> None:
    rows = [line for line in reference().splitlines() if line.startswith(f"| `{item.name}` |")]  # type: ignore[attr-defined]
    assert len(rows) == 1
    assert re.search(r"\| (str|bool|int|float|list of (str|int|float))( or none)? \|", rows[0])


def test_the_engines_column_is_what_the_engines_refuse() -> None:
    for option in {option for engine in ENGINES.values() for option in engine.unsupported}:
        row = next(line for line in reference().splitlines() if line.startswith(f"| `{option}` |"))
        able = row.rstrip(" |").rpartition("| ")[2].split(", ")
        assert able == [engine for engine in ENGINES if option not in ENGINES[engine].unsupported]
