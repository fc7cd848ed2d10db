"""docs/reference.md is what the code says."""

from __future__ import annotations

from pathlib import Path

from whispercore.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_reference_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python -m whispercore.reference > docs/reference.md"
