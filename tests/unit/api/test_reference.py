"""docs/reference.md is generated from the code."""

from __future__ import annotations

import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from whispercore.api.fields import ALIASES, KNOWN_FIELDS
from whispercore.api.reference import reference
from whispercore.catalogue import ENGINES
from whispercore.options import Options, Reply

PAGE = Path(__file__).parents[3] / "docs" / "reference.md"
REFERENCE = reference()


def test_the_reference_is_up_to_date() -> None:
    assert PAGE.read_text() == REFERENCE, "run: python -m whispercore.api.reference > docs/reference.md"


@pytest.mark.parametrize("name", [*KNOWN_FIELDS, *ALIASES])
def test_every_field_of_a_request_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in REFERENCE


@pytest.mark.parametrize("item", [*fields(Options), *fields(Reply)], ids=lambda item: item.name)
def test_every_option_has_one_row(item: Field[Any]) -> None:
    rows = [line for line in REFERENCE.splitlines() if line.startswith(f"| `{item.name}` |")]
    assert len(rows) == 1
    assert re.search(r"\| (str|bool|int|float|list of (str|int|float))( or none)? \|", rows[0])


def test_the_engines_column_lists_the_engines_that_support_the_option() -> None:
    for option in {option for engine in ENGINES.values() for option in engine.unsupported}:
        row = next(line for line in REFERENCE.splitlines() if line.startswith(f"| `{option}` |"))
        supporting = row.rstrip(" |").rpartition("| ")[2].split(", ")
        assert supporting == [engine for engine in ENGINES if option not in ENGINES[engine].unsupported]
