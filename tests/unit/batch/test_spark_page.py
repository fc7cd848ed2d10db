"""The function for Spark's mapInPandas in docs/batch.md, run on data frames without Spark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import whispercore
from tests.unit.doubles import wav
from whispercore.engines.fake import FakeEngine
from whispercore.serving.transcriber import Transcriber

pd = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "batch.md"


def test_each_recording_gets_a_text_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    function = block[block.index("def transcripts") : block.index("\nspark = ")]
    names: dict[str, Any] = {"Iterator": Iterator, "pd": pd}
    exec(function, names)
    monkeypatch.setattr(whispercore, "Transcriber", lambda *model, **settings: Transcriber(engine=FakeEngine()))
    frames = [pd.DataFrame({"path": [f"{name}.wav"], "content": [content]}) for name, content in {"a": wav(2), "b": b"words"}.items()]
    rows = pd.concat(names["transcripts"](iter(frames))).to_dict("records")
    assert [row["path"] for row in rows] == ["a.wav", "b.wav"]
    assert rows[0]["error"] == "" and rows[1]["text"] == "" and "is not audio" in rows[1]["error"]
