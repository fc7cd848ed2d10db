"""The engines bench: a process for each row, what is kept and tried again, the table and the plot."""

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

from bench import datasets, engines, engines_table, loss, results
from bench.datasets import Recording
from bench.engines import Row
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
    """Rows as they are measured, by a stand-in that breaks on int8 the first time."""
    seen: list[Row] = []

    def apart(row: Row, timeout: float) -> dict[str, Any]:
        seen.append(row)
        if row.precision == "int8" and sum(one.precision == "int8" for one in seen) == 1:
            return {"failure": "it broke"}
        return FIGURES | {"seconds": 20.0 if row.engine == "openai" else 5.0}

    monkeypatch.setattr(engines, "apart", apart)
    monkeypatch.setattr(engines, "SCRATCH", tmp_path)
    return seen


def run(tmp_path: Path, *more: str) -> int:
    given = ["--engines", "openai", "ct2", "--precisions", "float32", "int8", "--batch", "2", "--sizes", "--limit", "2", "--device", "cpu"]
    return engines.main([*given, "--results", str(tmp_path), *more])


def test_it_goes_on_with_what_is_missing_or_failed(measured: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 1, "a row failed"
    assert [(row.engine, row.precision) for row in measured] == [
        ("openai", "float32"),
        ("openai", "int8"),
        ("ct2", "float32"),
        ("ct2", "int8"),
    ]
    assert "- openai int8, batch 2: it broke" in capsys.readouterr().out
    assert run(tmp_path) == 0
    assert [(row.engine, row.precision) for row in measured[4:]] == [("openai", "int8")], "what is there is not measured again"
    assert run(tmp_path, "--again") == 0
    assert len(measured) == 9
    content = results.load(tmp_path, "engines")
    assert content and len(content["result"]["rows"]) == 4
    assert (tmp_path / "engines.svg").read_text().startswith("<?xml")


def test_a_stop_keeps_the_rows_that_are_done(measured: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_is_not_there_ends_it_before_it_begins(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert engines.main(arguments) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_by_default_every_engine_is_measured_in_all_its_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    computes = {"torch": ("float32", "bfloat16"), "ct2": ("float32", "int8", "int8_float32")}

    def precisions(name: str, device: str) -> tuple[str, ...]:
        if name not in computes:
            raise ConfigurationError(f"engine '{name}' cannot be imported")
        return computes[name]

    monkeypatch.setattr(engines, "precisions", precisions)
    rows = engines.chosen(engines._parser().parse_args(["--sizes", "--device", "cpu"]))
    found = {(row.engine, row.precision) for row in rows}
    assert {pair for pair in found if pair[0] in computes} == {(name, dtype) for name in computes for dtype in computes[name]}
    assert ("jax", "auto") in found, "what is not installed has a row that says so"
    assert {row.batch for row in rows} == {1, 8} and len(rows) == 2 * len(found)


def test_torch_is_measured_compiled_too_when_asked(measured: list[Row], tmp_path: Path) -> None:
    given = ("--engines", "torch", "ct2", "--precisions", "float32")
    assert run(tmp_path, *given, "--compile") == 0
    assert [(row.engine, row.compiled, row.settings.compile) for row in measured] == [
        ("torch", False, False),
        ("torch", True, True),
        ("ct2", False, False),
    ]
    assert run(tmp_path, *given) == 0 and len(measured) == 3, "they are not the same row"
    assert "| `torch` | float32, compiled | 2 |" in engines_table.table(tmp_path)


def test_every_engine_tells_its_precisions() -> None:
    """As docs/engines.md does; what is not installed is told."""
    page = (engines.ROOT / "docs" / "engines.md").read_text(encoding="utf-8").splitlines()
    for name in engines.MEASURED:
        try:
            found = precisions(name, "cpu")
        except ConfigurationError as error:
            assert "install" in error.message
            continue
        assert "float32" in found and "auto" not in found and set(found) <= DTYPES
        told = next(line.split("|")[3] for line in page if line.startswith(f"| `{name}` |"))
        assert set(found) <= set(re.findall(r"\w+", told)), f"docs/engines.md on {name}"


def librispeech(folder: Path, recordings: list[Recording]) -> Path:
    """A folder in LibriSpeech's layout, SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac, words in capitals, with these recordings."""
    chapter = folder / "test-clean" / "61" / "70968"
    chapter.mkdir(parents=True)
    lines = []
    for number, recording in enumerate(recordings):
        shutil.copy(recording.path, chapter / f"61-70968-{number:04d}.flac")
        lines.append(f"61-70968-{number:04d} {re.sub(r'[^A-Z ]', '', recording.text.upper())}\n")
    (chapter / "61-70968.trans.txt").write_text("".join(lines))
    return folder / "test-clean"


def test_librispeech_is_measured_where_its_folder_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, with a process for its row; the same words as of the held-out set itself."""
    spoken = datasets.manifest(datasets.HELDOUT)[:2]
    data, words = librispeech(tmp_path, spoken), sum(len(one.text.split()) for one in spoken)
    given = ["--data", str(data), "--engines", "openai", "--precisions", "float32", "--batch", "2", "--sizes", "--device", "cpu", "--json"]
    assert engines.main([*given, "--results", str(tmp_path / "results")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["result"]["rows"]
    assert row["data"] == "test-clean" and row["recordings"] == 2 and row["failed"] == 0
    assert (row["words"], row["wer"], row["wer_normalized"]) == (words, 0.0, 0.0)
    assert f"nano on test-clean (2 recordings, {words} words)" in engines_table.table(tmp_path / "results")


def test_recordings_are_librispeechs_a_folders_or_a_manifests(tmp_path: Path) -> None:
    (tmp_path / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN\n")
    assert [one.text for one in engines.recordings_of(str(tmp_path))] == ["HE BEGAN"]
    (tmp_path / "61-70968.trans.txt").unlink()
    with pytest.raises(ConfigurationError):
        engines.recordings_of(str(tmp_path))
    (tmp_path / "one.wav").touch()
    (tmp_path / "one.txt").write_text("one")
    assert [one.text for one in engines.recordings_of(str(tmp_path))] == ["one"]


def test_a_row_is_measured_in_a_process_of_its_own() -> None:
    found = engines.apart(ROW, timeout=300)
    assert "failure" not in found
    assert found["recordings"] == 2 and found["failed"] == 0 and found["wer"] <= 0.2
    assert found["rtfx"] > 0 and found["peak_rss_mb"] > 100 and found["disk_mb"] > 10 and found["peak_gpu_mb"] is None
    assert found["described"]["precision"] == "float32" and found["package"].startswith("openai-whisper ")


def test_a_row_that_cannot_be_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not in float16" in engines.apart(replace(ROW, engine="onnx", precision="float16"), timeout=300)["failure"]
    monkeypatch.setattr(engines.sys, "executable", "/bin/false")
    assert engines.apart(ROW, timeout=300)["failure"].startswith("its process ended with status 1")


def test_a_row_that_dies_stops_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed for want of memory, hanging for ever, and refused; the rows after them are measured."""
    really = subprocess.run
    ends = {"openai": "import os; os.kill(os.getpid(), 9)", "torch": "while True: pass"}

    def child(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        row, out = json.loads(command[4]), command[6]
        done = f"open({out!r}, 'w').write({json.dumps(FIGURES)!r})"
        return really([sys.executable, "-c", ends.get(row["engine"], done)], **options)

    monkeypatch.setattr(engines.subprocess, "run", lambda command, **options: (child if "--row" in command else really)(command, **options))
    assert run(tmp_path, "--engines", "openai", "torch", "hf", "--precisions", "float32", "--timeout", "3", "--model", "nano") == 1
    rows = {row["engine"]: row for row in (results.load(tmp_path, "engines") or {})["result"]["rows"]}
    assert "killed by signal 9" in rows["openai"]["failure"]
    assert rows["torch"]["failure"] == "not done after 3 s"
    assert "failure" not in rows["hf"] and rows["hf"]["wer"] == FIGURES["wer"]
    page = capsys.readouterr().out
    assert "| `hf` | float32 |" in page and "- openai float32, batch 2: its process ended with killed by signal 9" in page


class _Counting(FakeEngine):
    """Decodes as many tokens as it was made with, whatever it is told."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        assert all(len(window.samples) == WINDOW_SAMPLES for window in windows)
        return [replace(one, tokens=(1,) * self._tokens) for one in super().decode(windows)]


def test_fixed_work_is_checked() -> None:
    found = engines._speed(_Counting(engines.TOKENS), replace(ROW, data="random", windows=4))
    assert (found["windows"], found["tokens"], found["audio_seconds"]) == (4, engines.TOKENS, 120.0)
    with pytest.raises(RuntimeError, match="tokens were to be decoded"):
        engines._speed(_Counting(5), replace(ROW, data="random"))


def test_gpu_memory_is_the_most_that_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([2_000_000_000, 3_000_000_000])
    monkeypatch.setattr(engines, "_gpu_taken", lambda: next(taken, 2_500_000_000))
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
    base, fast = (replace(ROW, engine=name).named | FIGURES | {"seconds": seconds} for name, seconds in (("torch", 20.0), ("ct2", 5.0)))
    assert engines_table.relative("seconds", fast, [base, fast]) == 0.25
    assert engines_table.relative("seconds", fast | {"batch": 8}, [base, fast]) is None
    assert engines_table.relative("seconds", fast, [base | {"failure": "x"}, fast]) is None


def test_the_table_shows_every_column_and_each_reason_once() -> None:
    when = {"measured": {"load_average": [0.4]}}
    good = replace(ROW, engine="torch").named | FIGURES | when
    failed = [
        replace(ROW, engine="sherpa", precision=name, batch=batch).named | {"failure": "no"} | when for name in "ab" for batch in (1, 8)
    ]
    title, page, missing = engines_table._one([good, *failed], "CPU")
    assert "nano on heldout (38 recordings, 211 words)" in title
    heads, _, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines())
    shown = dict(zip(heads, cells, strict=True))
    assert (shown["WER"], shown["normalized"]) == ("3.0%", "2.0%")
    assert shown["time"] == "20.0 s" and shown["latency ×"] == "1.00" and shown["RTFx"] == "6.0"
    assert shown["peak RSS"] == "700 MB" and shown["peak GPU"] == "—" and shown["CPU"] == "90%"
    assert shown["load"] == "3.0 s" and shown["on disk"] == "26 MB"
    assert missing == "Not measured:\n\n- sherpa a, b, batch 1, 8: no\n"
    (on_gpu,) = engines_table._one([good | {"peak_gpu_mb": 5000.0}], "GPU")[1].splitlines()[2:]
    assert "| 5000 MB |" in on_gpu


def test_rows_of_other_threads_stand_in_another_table(tmp_path: Path, measured: list[Row]) -> None:
    run(tmp_path)
    run(tmp_path, "--threads", "4")
    page = engines_table.table(tmp_path)
    assert "1 thread: nano" in page and "4 threads: nano" in page


def test_the_plot_shows_each_kind_at_its_fastest_batch() -> None:
    rows = [replace(ROW, batch=batch).named | FIGURES | {"rtfx": rtfx} for batch, rtfx in ((1, 2.0), (8, 7.0), (16, 6.0))]
    assert [row["batch"] for row in engines_table._fastest(rows)] == [8]


def test_the_default_rows_are_every_engine_that_knows_words() -> None:
    assert set(engines.MEASURED) <= set(ENGINES) - {"fake"} and len(engines.MEASURED) >= 6


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert engines_table.table(tmp_path) == ""
    assert engines_table.plot(tmp_path, []).startswith("no plot")


def test_update_changes_the_block_and_nothing_else(measured: list[Row], tmp_path: Path) -> None:
    run(tmp_path)
    page = tmp_path / "measured.md"
    page.write_text(f"before\n{engines_table.BEGIN}old\n{engines_table.END}\nafter\n")
    engines_table.update(page, tmp_path)
    assert page.read_text() == f"before\n{engines_table.BEGIN}{engines_table.table(tmp_path)}{engines_table.END}\nafter\n"
    assert "**On a GPU**: not measured." in page.read_text()


def test_the_page_shows_the_committed_results() -> None:
    page = engines_table.MEASURED.read_text(encoding="utf-8")
    assert page.partition(engines_table.BEGIN)[2].partition(engines_table.END)[0] == engines_table.table() != "", (
        "run: python -m bench table"
    )


def test_committed_results_name_no_folder_of_that_machine() -> None:
    path = results.RESULTS / "engines.json"
    assert str(engines.ROOT) not in path.read_text() and str(Path.home()) not in path.read_text()
    rows = json.loads(path.read_text())["result"]["rows"]
    assert {row["engine"] for row in rows} >= set(engines.MEASURED)
    assert all("failure" in row or row["cpu_seconds"] > 0 for row in rows)


def test_faster_whispers_plain_mode_loses_nothing_but_what_is_not_read() -> None:
    """The committed measurement, and what docs/engines.md tells of it."""
    content = results.load(results.RESULTS, "loss")
    assert content
    alone, four = (content["result"][count] for count in ("1", "4"))
    every, first = "faster-whisper, every segment", "faster-whisper, first segment"
    assert alone[every]["wer"] == alone[first]["wer"] == pytest.approx(alone["openai-whisper"]["wer"], abs=0.01)
    assert four[every]["wer"] == pytest.approx(four["openai-whisper"]["wer"], abs=0.01)
    page = (engines.ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert f"**{four[first]['wer']:.1%}** with four" in page and f": {four[every]['wer']:.1%} for faster-whisper" in page


def test_joined_recordings_hold_all_their_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loss, "SCRATCH", tmp_path)
    spoken = datasets.manifest(datasets.HELDOUT)[:3]
    pair, last = loss.joined(spoken, 2)
    assert pair.text == f"{spoken[0].text} {spoken[1].text}" and last.text == spoken[2].text
    assert pair.seconds == pytest.approx(spoken[0].seconds + spoken[1].seconds + 2 * loss.GAP_SECONDS, abs=1e-3)
