"""The tables, goals and the plot of `bench accuracy`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bench import (
    results,
)
from bench.peers import Row
from bench.report import accuracy as report
from bench.report import goals, plot
from bench.report.page import MEASURED, README
from bench.work import ROOT
from tests.unit.bench.conftest import FIGURES
from whispercore.checkpoints import sha256

LANGUAGES = {
    name: {"words": 10, "wer": wer, "insertions": 0, "deletions": 1, "substitutions": 0} for name, wer in (("de", 0.1), ("zh", 0.3))
}


def _row(text: str, wer: float = 0.05, **other: Any) -> dict[str, Any]:
    """A row with this error rate on every set."""
    row = Row.parse(text)
    known = FIGURES | {"wer": wer}
    times = {"utterances": 10, "compared": 8, "shown_in_silence": 1.0, "median": 0.05, "worst": 1.0, "within": 0.96, "within_cut": 0.5}
    start = {"compared": 9, "mean": 0.06, "median": 0.05, "p90": 0.1, "worst": 0.2, "within": {}}
    sets = dict.fromkeys((*goals.GOAL_SETS, "mix", "whole"), known)
    sets |= dict.fromkeys(("chapters", "silence"), known | {"segment_times": times})
    sets["languages"] = known | {"languages": LANGUAGES, "mean_rate": wer, "language_right": 4, "language_wrong": []}
    sets["languages-told"] = known | {"languages": LANGUAGES, "mean_rate": wer}
    sets["word-times"] = known | {"word_times": {"words": 10, "start": start, "end": start}}
    sets["sounds"] = known | {"words": 0, "wer": None, "insertions": 0}
    named = {"row": str(row), "runner": row.runner, "mode": row.mode, "compute_type": row.compute_type, "together": row.together}
    return named | {"model": "base", "threads": 1, "beam_size": None, "limit": None, "sets": sets} | other


def _save(folder: Path, *found: dict[str, Any]) -> None:
    results.save(folder, "accuracy", results.provenance(), {}, {"rows": list(found)})


def _verdicts(folder: Path) -> dict[str, str]:
    lines = [line for line in report.tables(folder).splitlines() if line.startswith("- ") and ("met" in line or "missed" in line)]
    return {line.removeprefix("- ").partition(":")[0]: "missed" if "**missed**" in line else "met" for line in lines}


def test_the_tables_show_which_goals_are_met(tmp_path: Path) -> None:
    ours = _row(goals.DEFAULT, 0.05)
    _save(tmp_path, ours, _row(goals.OPENAI, 0.0492), _row(goals.BATCHED, 0.05), _row(goals.DEFAULT_FLOAT32, 0.0485))
    assert set(_verdicts(tmp_path).values()) == {"met"} and len(_verdicts(tmp_path)) == 8
    ours["sets"]["sounds"]["insertions"] = 1
    ours["sets"]["whole"] = FIGURES | {"wer": 0.053}
    ours["sets"]["languages"]["language_right"] = 3
    ours["sets"]["chapters"]["segment_times"]["within"] = 0.9
    ours["sets"]["word-times"]["word_times"]["start"]["median"] = 0.09
    _save(tmp_path, ours, _row(goals.OPENAI, 0.0488), _row(goals.BATCHED, 0.0498), _row(goals.DEFAULT_FLOAT32, 0.0478))
    assert set(_verdicts(tmp_path).values()) == {"missed"}
    page = report.tables(tmp_path)
    assert "test-clean 5.0% against 4.9%" in page and "0 of 12 sets" in page


def test_the_page_has_every_row_and_the_readme_has_selected_rows(tmp_path: Path) -> None:
    shown = [_row(text) for text in (goals.OPENAI, goals.BATCHED, goals.DEFAULT, "jax:chunked:float32")]
    failed = _row("sherpa:chunked:int8", failure="no wheel | here") | {"sets": {}}
    cut = _row("hf:chunked:float32", limit=2)
    _save(tmp_path, *shown, failed, cut, _row(goals.DEFAULT, model="tiny.en"))
    page, readme = report.tables(tmp_path), report.readme(tmp_path)
    assert "### base" in page and "### tiny.en" in page and "`0123456`" in page
    assert "| **this server**, jax, chunked, float32 | 5.0% |" in page and "- sherpa:chunked:int8: no wheel | here" in page
    assert "hf, chunked" not in page, "two recordings of each set are no measurement"
    assert [line.split(" | ")[0] for line in readme.splitlines() if "chunked" in line or "whisper, " in line][-1].endswith(
        "ct2, chunked, int8"
    )
    assert "jax" not in readme and "4 of 4" in readme and "45 s" in readme, "five sets of nine processor seconds"


def test_the_whole_set_is_shown_beside_the_published_figure(tmp_path: Path) -> None:
    whole = FIGURES | {"recordings": 2620, "wer": 0.0503}
    rows = [_row(goals.DEFAULT, model=model) for model in ("base", "tiny.en")]
    for row in rows:
        row["sets"] = row["sets"] | {"whole": whole}
    _save(tmp_path, *rows, _row(goals.OPENAI))
    page = report.tables(tmp_path)
    assert "| test-clean, whole: 2,620 utterances | WER | published |" in page
    assert "| **this server**, ct2, chunked, int8 | 5.03% | 5.0% | 1 / 2 / 2 |" in page, "base"
    assert "| **this server**, ct2, chunked, int8 | 5.03% | 5.6% | 1 / 2 / 2 |" in page, "tiny.en"
    assert page.count("- all of test-clean at most 5.2% (published 5.0%): 5.03%, met\n") == 1, "the goal is base's"
    assert len(report.README_ROWS) <= 6


def test_without_the_sequential_row_the_study_is_compared_with_chunked_pytorch(tmp_path: Path) -> None:
    _save(tmp_path, _row("torch:chunked:float32"), _row(goals.PLAIN_INT8, 0.06), _row(goals.OPENAI, 0.05))
    page = report.tables(tmp_path)
    assert "| **this server**, torch, chunked, float32 | 5.0% | 1.00 | 1.00 | 900 MB |" in page
    assert "Here it has 6.0% beside openai-whisper's 5.0%: 1.2 times." in page


def test_the_study_is_compared_with_pytorch(tmp_path: Path) -> None:
    slow, quick = _row(goals.STUDY_ROWS[0]), _row("onnx:chunked:int8")
    quick["sets"]["test-clean"] = FIGURES | {"cpu_seconds": 4.5}
    _save(tmp_path, slow, quick, _row(goals.PLAIN, 0.06), _row(goals.OPENAI, 0.05))
    page = report.tables(tmp_path)
    assert "| **this server**, onnx, chunked, int8 | 5.0% | 1.00 | 0.50 | 900 MB |" in page
    assert "Here it has 6.0% beside openai-whisper's 5.0%: 1.2 times." in page


def test_the_pages_show_the_committed_results() -> None:
    page = MEASURED.read_text(encoding="utf-8")
    assert report.BLOCK.text(page) == report.tables() != "", "run: python -m bench table"
    readme = README.read_text(encoding="utf-8")
    if report.BLOCK.begin in readme:
        assert report.BLOCK.text(readme) == report.readme(), "run: python -m bench table"


def test_the_bundled_models_committed_figures_are_of_the_bundled_model() -> None:
    content = results.load(results.RESULTS, "accuracy")
    assert content is not None
    of_nano = {row["weights"] for row in content["result"]["rows"] if row["model"] == "nano"}
    assert of_nano == {sha256(ROOT / "whisper-models" / "nano.pt")}, "another model: python -m bench accuracy --model nano"


def test_update_changes_the_block_and_nothing_else(tmp_path: Path) -> None:
    _save(tmp_path, _row(goals.DEFAULT), _row(goals.OPENAI))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BLOCK.begin}old\n{report.BLOCK.end}\nafter\n", encoding="utf-8")
    assert report.update_readme(page, tmp_path)
    expected = report.readme(tmp_path)
    assert page.read_text(encoding="utf-8") == f"before\n{report.BLOCK.begin}{expected}{report.BLOCK.end}\nafter\n" and expected
    report.update(page, tmp_path)
    assert report.BLOCK.text(page.read_text(encoding="utf-8")) == report.tables(tmp_path)
    page.write_text("no markers", encoding="utf-8")
    assert not report.update_readme(page, tmp_path)
    with pytest.raises(ValueError, match="needs the lines"):
        report.update(page, tmp_path)


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert report.tables(tmp_path) == report.readme(tmp_path) == ""


def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason=plot.MISSING)
    found = [_row(goals.DEFAULT), _row(goals.OPENAI)]
    assert plot.accuracy(tmp_path, found) == str(tmp_path / "accuracy.svg")
    first = (tmp_path / "accuracy.svg").read_bytes()
    plot.accuracy(tmp_path, found)
    assert (tmp_path / "accuracy.svg").read_bytes() == first and goals.DEFAULT.encode() in first
    assert plot.accuracy(tmp_path, [_row(goals.DEFAULT, model="nano")]).startswith("no plot: no row of base")


def test_without_matplotlib_the_reason_is_returned_instead_of_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.accuracy(tmp_path, [_row(goals.DEFAULT)]) == plot.MISSING
    assert not list(tmp_path.iterdir())
