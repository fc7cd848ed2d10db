"""`bench engines`: a process for each row, saving and resuming, the tables and the plot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import datasets, engines, loss, results
from bench.datasets import Recording
from bench.engines import Row
from bench.report import engines as report
from bench.report import plot
from bench.report.page import MEASURED
from bench.work import ROOT, TOKENS
from whispercore.catalogue import ENGINES
from whispercore.engines import precisions
from whispercore.engines.fake import FakeEngine
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings
from whispercore.types import WINDOW_SAMPLES, Decoded, Decoding, Window

ROW = Row(model="nano", data="heldout", engine="openai", precision="float32", batch=2, device="cpu", threads=1, limit=2)
DTYPES = set(Settings.__dataclass_fields__["dtype"].metadata["choices"])
FIGURES: dict[str, Any] = {
    "recordings": 38,
    "words": 211,
    "wer": 0.03,
    "wer_normalized": 0.02,
    "failed": 0,
    "failures": [],
    "audio_seconds": 120.0,
    "seconds": 20.0,
    "cpu_seconds": 18.0,
    "rtfx": 6.0,
    "cores": 0.9,
    "load_seconds": 3.0,
    "peak_rss_mb": 700.0,
    "peak_gpu_mb": None,
    "disk_mb": 26.0,
    "described": {},
    "package": "torch 2",
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Row]:
    """The measured rows. A stand-in for measuring fails on the first row in int8."""
    rows: list[Row] = []

    def apart(row: Row, timeout: float) -> dict[str, Any]:
        rows.append(row)
        if row.precision == "int8" and sum(measured.precision == "int8" for measured in rows) == 1:
            return {"failure": "it broke"}
        return FIGURES | {"seconds": 20.0 if row.engine == "openai" else 5.0}

    monkeypatch.setattr(engines, "apart", apart)
    monkeypatch.setattr(engines, "SCRATCH", tmp_path)
    return rows


def run(tmp_path: Path, *more: str) -> int:
    arguments = [
        "--engines",
        "openai",
        "ct2",
        "--precisions",
        "float32",
        "int8",
        "--batch",
        "2",
        "--sizes",
        "--limit",
        "2",
        "--device",
        "cpu",
    ]
    return engines.main([*arguments, "--results", str(tmp_path), *more])


def test_missing_and_failed_rows_are_measured_again(measured: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 1, "a row failed"
    assert [(row.engine, row.precision) for row in measured] == [
        ("openai", "float32"),
        ("openai", "int8"),
        ("ct2", "float32"),
        ("ct2", "int8"),
    ]
    assert "- openai int8, batch 2: it broke" in capsys.readouterr().out
    assert run(tmp_path) == 0
    assert [(row.engine, row.precision) for row in measured[4:]] == [("openai", "int8")], "finished rows are not measured again"
    assert run(tmp_path, "--again") == 0
    assert len(measured) == 9
    content = results.load(tmp_path, "engines")
    assert content and len(content["result"]["rows"]) == 4
    assert (tmp_path / "engines.svg").read_text().startswith("<?xml")


def test_a_stopped_run_keeps_finished_rows(measured: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = engines.apart

    def stopped(row: Row, timeout: float) -> dict[str, Any]:
        if row.engine == "ct2":
            raise KeyboardInterrupt
        return first(row, timeout)

    monkeypatch.setattr(engines, "apart", stopped)
    assert run(tmp_path) == 1
    content = results.load(tmp_path, "engines")
    assert content and [row["engine"] for row in content["result"]["rows"]] == ["openai", "openai"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--engines", "caffe"], "unknown engine"),
        (["--data", "nowhere"], "is not a folder"),
        (["--sizes", "gigantic"], "unknown size"),
        (["--model", "nowhere.pt"], "no checkpoint"),
    ],
)
def test_an_unknown_engine_path_size_or_model_is_an_error_before_measuring(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engines.main(arguments) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_by_default_every_engine_is_measured_in_all_its_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    supported = {"torch": ("float32", "bfloat16"), "ct2": ("float32", "int8", "int8_float32")}

    def precisions(name: str, device: str) -> tuple[str, ...]:
        if name not in supported:
            raise ConfigurationError(f"engine '{name}' cannot be imported")
        return supported[name]

    monkeypatch.setattr(engines, "precisions", precisions)
    rows = engines.chosen(engines._parser().parse_args(["--sizes", "--device", "cpu"]))
    pairs = {(row.engine, row.precision) for row in rows}
    assert {pair for pair in pairs if pair[0] in supported} == {(name, dtype) for name in supported for dtype in supported[name]}
    assert ("jax", "auto") in pairs, "an engine that is not installed has a row, which will report it"
    assert {row.batch for row in rows} == {1, 8} and len(rows) == 2 * len(pairs)


def test_compile_measures_torch_compiled_too(measured: list[Row], tmp_path: Path) -> None:
    given = ("--engines", "torch", "ct2", "--precisions", "float32")
    assert run(tmp_path, *given, "--compile") == 0
    assert [(row.engine, row.compiled, row.settings.compile) for row in measured] == [
        ("torch", False, False),
        ("torch", True, True),
        ("ct2", False, False),
    ]
    assert run(tmp_path, *given) == 0 and len(measured) == 3, "they are not the same row"
    assert "| `torch` | float32, compiled | 2 |" in report.tables(tmp_path)


def test_docs_list_every_engines_precisions() -> None:
    """docs/engines.md has the precisions of every engine that is installed."""
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8").splitlines()
    for name in engines.MEASURED:
        try:
            supported = precisions(name, "cpu")
        except ConfigurationError as error:
            assert "install" in error.message
            continue
        assert "float32" in supported and "auto" not in supported and set(supported) <= DTYPES
        documented = next(line.split("|")[3] for line in page if line.startswith(f"| `{name}` |"))
        assert set(supported) <= set(re.findall(r"\w+", documented)), f"docs/engines.md on {name}"


def librispeech(folder: Path, recordings: list[Recording]) -> Path:
    """A folder in LibriSpeech's layout, SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac, words in capitals, with these
    recordings."""
    chapter = folder / "test-clean" / "61" / "70968"
    chapter.mkdir(parents=True)
    lines = []
    for number, recording in enumerate(recordings):
        shutil.copy(recording.path, chapter / f"61-70968-{number:04d}.flac")
        lines.append(f"61-70968-{number:04d} {re.sub(r'[^A-Z ]', '', recording.text.upper())}\n")
    (chapter / "61-70968.trans.txt").write_text("".join(lines))
    return folder / "test-clean"


@pytest.mark.slow
def test_librispeechs_layout_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command with a process for its row. The words are those of the held-out set."""
    spoken = datasets.manifest(datasets.HELDOUT)[:2]
    data, words = librispeech(tmp_path, spoken), sum(len(one.text.split()) for one in spoken)
    given = ["--data", str(data), "--engines", "openai", "--precisions", "float32", "--batch", "2", "--sizes", "--device", "cpu", "--json"]
    assert engines.main([*given, "--results", str(tmp_path / "results")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["result"]["rows"]
    assert row["data"] == "test-clean" and row["recordings"] == 2 and row["failed"] == 0
    assert (row["words"], row["wer"], row["wer_normalized"]) == (words, 0.0, 0.0)
    assert f"nano on test-clean (2 recordings, {words} words)" in report.tables(tmp_path / "results")


def test_recordings_are_librispeechs_a_folders_or_a_manifests(tmp_path: Path) -> None:
    (tmp_path / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN\n")
    assert [one.text for one in engines.recordings_of(str(tmp_path))] == ["HE BEGAN"]
    (tmp_path / "61-70968.trans.txt").unlink()
    with pytest.raises(ConfigurationError):
        engines.recordings_of(str(tmp_path))
    (tmp_path / "one.wav").touch()
    (tmp_path / "one.txt").write_text("one")
    assert [one.text for one in engines.recordings_of(str(tmp_path))] == ["one"]


@pytest.mark.slow
def test_a_row_is_measured_in_its_own_process() -> None:
    figures = engines.apart(ROW, timeout=300)
    assert "failure" not in figures
    assert figures["recordings"] == 2 and figures["failed"] == 0 and figures["wer"] <= 0.2
    assert figures["rtfx"] > 0 and figures["peak_rss_mb"] > 100 and figures["disk_mb"] > 10 and figures["peak_gpu_mb"] is None
    assert figures["described"]["precision"] == "float32" and figures["package"].startswith("openai-whisper ")


@pytest.mark.slow
def test_an_unsupported_row_reports_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not in float16" in engines.apart(replace(ROW, engine="onnx", precision="float16"), timeout=300)["failure"]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert engines.apart(ROW, timeout=300)["failure"].startswith("its process ended with status 1")


@pytest.mark.slow
def test_a_failed_row_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row is killed and one hangs; the row after them is measured."""
    really = subprocess.run
    ends = {"openai": "import os; os.kill(os.getpid(), 9)", "torch": "while True: pass"}

    def child(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        row, out = json.loads(command[4]), command[6]
        done = f"open({out!r}, 'w').write({json.dumps(FIGURES)!r})"
        return really([sys.executable, "-c", ends.get(row["engine"], done)], **options)

    monkeypatch.setattr(subprocess, "run", lambda command, **options: (child if "--row" in command else really)(command, **options))
    assert run(tmp_path, "--engines", "openai", "torch", "hf", "--precisions", "float32", "--timeout", "3", "--model", "nano") == 1
    rows = {row["engine"]: row for row in (results.load(tmp_path, "engines") or {})["result"]["rows"]}
    assert "killed by signal 9" in rows["openai"]["failure"]
    assert rows["torch"]["failure"] == "not done after 3 s"
    assert "failure" not in rows["hf"] and rows["hf"]["wer"] == FIGURES["wer"]
    page = capsys.readouterr().out
    assert "| `hf` | float32 |" in page and "- openai float32, batch 2: its process ended with killed by signal 9" in page


class _Counting(FakeEngine):
    """Decodes a fixed number of tokens, whatever the decoding options are."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        assert all(len(window.samples) == WINDOW_SAMPLES for window in windows)
        return [replace(decoded, tokens=(1,) * self._tokens) for decoded in super().decode(windows)]


def test_the_token_count_is_checked() -> None:
    figures = engines._speed(_Counting(TOKENS), replace(ROW, data="random", windows=4))
    assert (figures["windows"], figures["tokens"], figures["audio_seconds"]) == (4, TOKENS, 120.0)
    with pytest.raises(RuntimeError, match="tokens were to be decoded"):
        engines._speed(_Counting(5), replace(ROW, data="random"))


def test_gpu_memory_is_the_peak_since_entering(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([2_000_000_000, 3_000_000_000])
    monkeypatch.setattr(engines, "_gpu_used", lambda: next(used, 2_500_000_000))
    with engines.gpu_memory("cuda") as peak:
        while not peak():
            pass
        assert peak() == 1000.0
    with engines.gpu_memory("cpu") as none:
        assert none() is None


def test_every_size_of_a_batch_is_warmed_up() -> None:
    engine = FakeEngine(max_batch=6)
    engines._warm_up(engine, 6, Decoding(), np.zeros(1000, np.float32))
    assert engine.batches == [1, 2, 4, 6]


def test_rows_are_compared_with_fp32_torch_on_the_same_work() -> None:
    base, fast = (replace(ROW, engine=name).key | FIGURES | {"seconds": seconds} for name, seconds in (("torch", 20.0), ("ct2", 5.0)))
    assert report.relative("seconds", fast, [base, fast]) == 0.25
    assert report.relative("seconds", fast | {"batch": 8}, [base, fast]) is None
    assert report.relative("seconds", fast, [base | {"failure": "x"}, fast]) is None


def test_the_table_has_every_column_and_each_reason_once() -> None:
    when = {"measured": {"load_average": [0.4]}}
    good = replace(ROW, engine="torch").key | FIGURES | when
    failed = [
        replace(ROW, engine="sherpa", precision=name, batch=batch).key | {"failure": "no"} | when for name in "ab" for batch in (1, 8)
    ]
    title, page, missing = report.table([good, *failed], "CPU")
    assert "nano on heldout (38 recordings, 211 words)" in title
    heads, _, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines())
    shown = dict(zip(heads, cells, strict=True))
    assert (shown["WER"], shown["normalized"]) == ("3.0%", "2.0%")
    assert shown["time"] == "20.0 s" and shown["latency ×"] == "1.00" and shown["RTFx"] == "6.0"
    assert shown["peak RSS"] == "700 MB" and shown["peak GPU"] == "—" and shown["CPU"] == "90%"
    assert shown["load"] == "3.0 s" and shown["on disk"] == "26 MB"
    assert missing == "Not measured:\n\n- sherpa a, b, batch 1, 8: no\n"
    (on_gpu,) = report.table([good | {"peak_gpu_mb": 5000.0}], "GPU")[1].splitlines()[2:]
    assert "| 5000 MB |" in on_gpu


def test_rows_with_other_threads_are_in_another_table(tmp_path: Path, measured: list[Row]) -> None:
    run(tmp_path)
    run(tmp_path, "--threads", "4")
    page = report.tables(tmp_path)
    assert "1 thread: nano" in page and "4 threads: nano" in page


def test_the_plot_has_each_engine_and_precision_at_its_fastest_batch() -> None:
    rows = [replace(ROW, batch=batch).key | FIGURES | {"rtfx": rtfx} for batch, rtfx in ((1, 2.0), (8, 7.0), (16, 6.0))]
    assert [row["batch"] for row in report.fastest(rows)] == [8]


def test_the_default_rows_have_every_engine_but_fake() -> None:
    assert set(engines.MEASURED) <= set(ENGINES) - {"fake"} and len(engines.MEASURED) >= 6


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert report.tables(tmp_path) == ""
    assert plot.engines(tmp_path, []).startswith("no plot")


def test_update_changes_the_block_and_nothing_else(measured: list[Row], tmp_path: Path) -> None:
    run(tmp_path)
    page = tmp_path / "measured.md"
    page.write_text(f"before\n{report.BLOCK.begin}old\n{report.BLOCK.end}\nafter\n")
    report.update(page, tmp_path)
    assert page.read_text() == f"before\n{report.BLOCK.begin}{report.tables(tmp_path)}{report.BLOCK.end}\nafter\n"
    assert "**On a GPU**: not measured." in page.read_text()


def test_the_page_shows_the_committed_results() -> None:
    page = MEASURED.read_text(encoding="utf-8")
    assert report.BLOCK.text(page) == report.tables() != "", "run: python -m bench table"


def test_committed_results_name_no_local_folder() -> None:
    path = results.RESULTS / "engines.json"
    assert str(ROOT) not in path.read_text() and str(Path.home()) not in path.read_text()
    rows = json.loads(path.read_text())["result"]["rows"]
    assert {row["engine"] for row in rows} >= set(engines.MEASURED)
    assert all("failure" in row or row["cpu_seconds"] > 0 for row in rows)


def test_faster_whispers_plain_mode_loses_only_the_segments_that_are_not_read() -> None:
    """The committed measurement and the figures in docs/engines.md."""
    content = results.load(results.RESULTS, "loss")
    assert content
    single, four = (content["result"][count] for count in ("1", "4"))
    every, first = "faster-whisper, every segment", "faster-whisper, first segment"
    assert single[every]["wer"] == single[first]["wer"] == pytest.approx(single["openai-whisper"]["wer"], abs=0.01)
    assert four[every]["wer"] == pytest.approx(four["openai-whisper"]["wer"], abs=0.01)
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert f"**{four[first]['wer']:.1%}** with four" in page and f": {four[every]['wer']:.1%} for faster-whisper" in page


def test_joined_recordings_have_all_their_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loss, "SCRATCH", tmp_path)
    spoken = datasets.manifest(datasets.HELDOUT)[:3]
    pair, last = loss.joined(spoken, 2)
    assert pair.text == f"{spoken[0].text} {spoken[1].text}" and last.text == spoken[2].text
    assert pair.seconds == pytest.approx(spoken[0].seconds + spoken[1].seconds + 2 * loss.GAP_SECONDS, abs=1e-3)
