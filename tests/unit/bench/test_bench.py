"""The benchmarks themselves: equal work for all contenders, the load generator, results, tables and plots."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import whisper
from whisper.model import ModelDimensions

from bench import contenders, ggml, overhead, results, serve, server, soak, speech, work
from bench.load import Connection, LoadError, Reply, Work, closed_loop, open_loop
from bench.plain.plain_handler import PlainHandler, options
from bench.plan import QUICK
from bench.report import plot, startup
from bench.report import serve as serve_report
from bench.report.page import MEASURED
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import write_random
from whispercore.types import SAMPLE_RATE

TINY = ModelDimensions(80, 1500, 32, 2, 1, 51_865, 448, 32, 2, 1)


class Answers(BaseHTTPRequestHandler):
    """Records every request, and answers when as many requests are open as the test expects."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        stub: Stub = self.server  # type: ignore[assignment]
        stub.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        stub.together.wait()
        body = b"{}" if stub.status == 200 else b"busy"
        self.send_response(stub.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Stub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, together: int) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.bodies: list[bytes] = []
        self.status = 200
        self.together = threading.Barrier(together, timeout=60)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def stub() -> Iterator[Callable[[int], Stub]]:
    stubs: list[Stub] = []

    def start(together: int) -> Stub:
        stubs.append(Stub(together))
        return stubs[-1]

    yield start
    for started in stubs:
        started.shutdown()
        started.server_close()


# The load


def test_a_closed_loop_keeps_its_number_of_requests_open_and_sends_each_recording_once(stub: Callable[[int], Stub]) -> None:
    served = stub(4)  # answers only while four are open
    clips = [b"%d" % number for number in range(12)]
    load = closed_loop(served.server_port, "any", clips, {}, concurrency=4)
    assert len(load.replies) == 12 and sorted(served.bodies) == sorted(clips)
    assert load.requests_per_second == pytest.approx(12 / load.wall)
    assert all(0 < reply.seconds <= load.wall for reply in load.replies)


def test_an_open_loop_does_not_wait_for_replies_and_counts_from_the_due_time(stub: Callable[[int], Stub]) -> None:
    served = stub(6)  # answers when all six have come
    clips = [b"%d" % number for number in range(6)]
    load = open_loop(served.server_port, "any", clips, {}, rate=50.0, seed=1)
    due, random_times = list[float](), random.Random(1)
    for _ in clips:
        due.append((due[-1] if due else 0.0) + random_times.expovariate(50.0))
    assert sorted(served.bodies) == clips
    for reply, at in zip(load.replies, due, strict=True):
        assert due[-1] - at <= reply.seconds + 0.005, "no reply came before the last request"


def test_a_refused_request_discards_the_measurement(stub: Callable[[int], Stub]) -> None:
    served = stub(1)
    served.status = 503
    with pytest.raises(LoadError, match="status 503: busy"):
        closed_loop(served.server_port, "any", [b"a"] * 4, {}, concurrency=2)
    with pytest.raises(LoadError, match="status 503: busy"):
        open_loop(served.server_port, "any", [b"a"], {}, rate=100.0)


# The work


def test_clips_are_different_and_last_ten_seconds() -> None:
    clips = work.clips()
    assert len(set(clips)) == work.CLIPS
    assert {len(read_samples(clip)) for clip in clips} == {work.CLIP_SECONDS * SAMPLE_RATE}


def test_a_long_recording_has_the_requested_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SCRATCH", tmp_path)
    path = work.long_recording(100)  # more than twice the sample
    assert len(read_samples(path)) / SAMPLE_RATE == pytest.approx(100, abs=0.2)
    assert work.long_recording(100) == path and list(tmp_path.iterdir()) == [path]


def test_the_requests_options_decode_every_window_once() -> None:
    options = work.options()
    assert (options.temperature, options.vad_filter, options.language) == ((0.0,), False, "en")
    assert options.no_speech_threshold is None and options.logprob_threshold is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny-random.pt"
    write_random(TINY, path)
    return path


def test_both_servers_decode_the_same_number_of_tokens(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = 20
    variables = {"WHISPER_MODEL": str(tiny), "WHISPER_ENGINE": "openai", "WHISPER_DEVICE": "cpu", "WHISPER_FIXED_TOKENS": str(tokens)}
    transcriber, engine = work.in_process(variables)
    with transcriber:
        for clip in work.clips()[:2]:
            transcriber.submit(clip, work.options()).result(timeout=300)
    assert engine.tokens == [tokens, tokens]

    monkeypatch.setenv("PLAIN_MODEL", str(tiny))
    monkeypatch.setenv("PLAIN_TOKENS", str(tokens))
    handler, sampled = PlainHandler(), list[int]()
    handler.initialize(None)
    decode = handler.model.decode
    monkeypatch.setattr(handler.model, "decode", lambda mel, options: _counted(decode(mel, options), sampled))
    handler.handle([{"body": bytearray(clip)} for clip in work.clips()[:2]], None)
    assert sampled == [tokens, tokens], "one window for each clip, and all its tokens"


def _counted(result: whisper.DecodingResult, sampled: list[int]) -> whisper.DecodingResult:
    sampled.append(len(result.tokens))
    return result


def test_without_a_token_count_the_plain_handler_has_whispers_defaults(tiny: Path) -> None:
    assert options(whisper.load_model(str(tiny), device="cpu"), 0) == {"language": "en", "fp16": torch.cuda.is_available()}


@pytest.mark.parametrize(
    ("model", "content", "windows"),
    [
        ("plain", {"tokens": [60]}, 1),
        ("plain", {"tokens": [60, 60]}, 2),
        ("plain", {"tokens": [60, 59]}, None),
        ("plain", {"tokens": []}, None),
        ("whisper", {"duration": 10.0, "segments": [{"tokens": [1] * 50}, {"tokens": [1] * 4}]}, 1),
        ("whisper", {"duration": 10.0, "segments": [{"tokens": [1] * 61}]}, None),
        ("whisper", {"duration": 10.0, "segments": []}, None),
        ("whisper", {"duration": 600.0, "segments": [{"tokens": [1] * 50}] * 20}, 17),
        ("whisper", {"duration": 600.0, "segments": [{"tokens": [1] * 50}]}, None),
    ],
)
def test_a_reply_with_another_token_count_stops_the_measurement(model: str, content: dict[str, Any], windows: int | None) -> None:
    reply = Reply(1.0, json.dumps(content).encode())
    if windows:
        assert contenders.windows_of(model, reply, 60) == windows
    else:
        with pytest.raises(RuntimeError, match="did not decode 60 tokens of every window"):
            contenders.windows_of(model, reply, 60)


def test_no_two_recordings_of_a_load_are_the_same() -> None:
    clips = [*speech.clips(3, 10, seed=1), *speech.clips(3, 10, seed=2)]
    assert len(set(clips)) == 6 and {len(read_samples(clip)) for clip in clips} == {160_000}
    assert speech.clips(1, 10, seed=1)[0] == clips[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(contenders.LIBRARIES))
def test_every_library_decodes_the_requested_tokens_of_every_window(
    name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in {"transformers": ["transformers"], "whisper.cpp": ["pywhispercpp"]}.get(name, []):
        pytest.importorskip(package, reason=f"{package} is a requirement of the bench only")
    monkeypatch.setattr(contenders, "checkpoint", lambda _: tiny)
    variables = {
        "WHISPER_MODEL": str(tiny),
        "WHISPER_FIXED_TOKENS": "7",
        "WHISPER_CONVERTED_DIR": str(tmp_path),
        "WHISPER_ENGINE": "openai",
    }
    monkeypatch.setattr(contenders, "environment", lambda *_, **__: variables)
    setup = contenders.Setup(size="any", device="cpu", threads=1, tokens=7)
    with contenders.LIBRARIES[name](setup) as run:
        work = contenders._timed(run, speech.clips(3, 10, seed=1), 2, setup.tokens)
        assert (work.windows, len(work.seconds)) == (3, 3) and all(0 < seconds <= work.wall for seconds in work.seconds)
        with pytest.raises(RuntimeError, match="8 tokens were to be decoded"):
            contenders._timed(run, speech.clips(1, 10, seed=2), 1, setup.tokens + 1)


@pytest.mark.slow
def test_a_library_that_cannot_be_loaded_reports_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    library = contenders.Alone("whisper.cpp", contenders.Setup(size="tiny", device="cuda", threads=1, tokens=7))
    try:
        with pytest.raises(LoadError, match=r"whisper.cpp: (RuntimeError: .* CPUs only|ModuleNotFoundError)"):
            library.wait_until_ready()
    finally:
        library.stop()


def test_q8_0_scales_each_block_by_its_largest_weight() -> None:
    values = np.zeros((2, ggml.BLOCK), np.float32)
    values[0, :3] = 1.27, -0.5, 0.011
    packed = np.frombuffer(ggml.q8_0(values), dtype=[("scale", "<f2"), ("weights", "i1", ggml.BLOCK)])
    assert packed["weights"][0, :4].tolist() == [127, -50, 1, 0] and packed["scale"][0] == pytest.approx(0.01, rel=1e-3)
    assert not packed["weights"][1].any() and packed["scale"][1] == 0


class _Steady:
    """A contender that takes the same time for every clip."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds, self.clips, self.used = name, seconds, list[bytes](), 0.0

    def processor_seconds(self) -> float:
        return self.used

    def load(self, recordings: Sequence[bytes], together: int) -> Work:
        self.clips += recordings
        self.used += 2 * self.seconds * len(recordings)
        return Work(self.seconds * len(recordings), (self.seconds,) * len(recordings), len(recordings))


def test_contenders_take_turns_and_get_the_same_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "clips", lambda count, seconds, seed: [b"%d" % seed])
    ours, core, unbatched = _Steady(contenders.OURS, 1.0), _Steady("core", 0.9), _Steady("openai-whisper", 4.0)
    batched = _Steady("transformers", 2.0)
    all_contenders = {contender.name: contender for contender in (ours, core, unbatched, batched)}
    measured, plan, log = {name: serve.Measured() for name in all_contenders}, serve.Plan(patience=8.0), list[str]()
    loads = serve.Loads(all_contenders, measured, {}, log.append)
    for number in range(2):
        for together in (1, 8):
            loads.clips(together, number, plan)
    assert [line.split(": ")[1].split(" ")[0] for line in log[:3]] == ["this", "core", "openai-whisper"]
    assert len(measured[contenders.OURS].clips[8]) == 2 and 8 not in measured["openai-whisper"].clips
    assert ours.clips[:4] == core.clips[:4] and len(set(ours.clips)) == len(ours.clips)
    figures = serve.summary(measured, plan)
    assert figures["openai-whisper"]["clips"]["8"]["ratio"].median == pytest.approx(4.0)
    assert figures["core"]["clips"]["8"]["ratio"].median == pytest.approx(0.9)
    assert figures["core"]["clips"]["8"]["processor_seconds"].median == pytest.approx(1.8), "of two cores"
    loads.clips(64, 0, plan)
    assert 64 in measured["core"].clips and 8 in measured["transformers"].clips
    assert 64 not in measured["transformers"].clips, "64 clips take more than five times eight seconds"


def test_a_failing_peer_is_left_out_and_our_failure_is_raised() -> None:
    class Broken(_Steady):
        def load(self, recordings: Sequence[bytes], together: int) -> Work:
            raise LoadError("it died\nof this")

    for name in (contenders.OURS, "core"):
        missing: dict[str, str] = {}
        loads = serve.Loads({name: Broken(name, 1.0)}, {name: serve.Measured()}, missing, lambda _: None)
        if name == contenders.OURS:
            with pytest.raises(LoadError):
                loads.clips(1, 0, serve.Plan())
        else:
            loads.clips(1, 0, serve.Plan())
            assert missing == {"core": "it died"}


def test_percentiles() -> None:
    percentiles = serve.percentiles(float(value) for value in range(1, 101))
    assert percentiles == {"p50": 50.5, "p95": 96.0, "worst": 100.0, "clips": 100}


def test_drift_is_the_largest_change_after_the_warm_up() -> None:
    worker = [(0, 100.0), (100, 500.0), (200, 400.0), (300, 404.0), (400, 392.0)]
    figures = soak.summary([(number, {"worker": megabytes}) for number, megabytes in worker])
    assert (figures["drift"], figures["low_mb"], figures["high_mb"]) == (0.02, 392.0, 404.0)


def test_the_slope_of_each_process_is_that_of_the_second_half() -> None:
    measured = [(number, {"worker": 100.0 + min(number, 500), "jvm": 200.0 + number / 100}) for number in range(0, 1001, 100)]
    processes = soak.summary([*measured[:-1], (1000, measured[-1][1] | {"prober": 1.0})])["processes"]
    assert processes.keys() == {"worker", "jvm"}, "only what was there all the time"
    assert processes["worker"] == {"start_mb": 100.0, "half_mb": 600.0, "end_mb": 600.0, "mb_per_1000": 0.0}
    assert processes["jvm"]["mb_per_1000"] == pytest.approx(10.0)


class _Constant:
    """A transcriber, a job and a transcript in one, whose text is always `text`."""

    def __init__(self, text: str) -> None:
        self.text = text

    def submit(self, *_: object) -> _Constant:
        return self

    def result(self) -> _Constant:
        return self


@pytest.mark.parametrize("text", ["", "other words"])
def test_overhead_needs_equal_answers(stub: Callable[[int], Stub], monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    served = stub(1)
    monkeypatch.setattr(overhead, "json", SimpleNamespace(loads=lambda _: {"text": ""}))
    with Connection(served.server_port, "any") as connection:
        rounds = overhead.compare(connection, _Constant(text), QUICK)
        if text:
            with pytest.raises(RuntimeError, match="not the same work"):
                list(rounds)
        else:
            assert len(list(rounds)) == QUICK.overhead_rounds
            assert len(served.bodies) == QUICK.overhead_rounds * (QUICK.overhead_calls + 1)


# The servers

TWO_PROCESSES = """
import os, subprocess, sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answers(BaseHTTPRequestHandler):
    posts = 0
    def do_GET(self):
        self.send_response(500); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Answers.posts += 1
        self.send_response(200 if Answers.posts > 2 else 503); self.end_headers(); self.wfile.write(b"words")

child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", "model_service_worker"])
HTTPServer(("127.0.0.1", int(os.environ["TS_INFERENCE_ADDRESS"].rpartition(":")[2])), Answers).serve_forever()
"""


def test_a_server_is_ready_with_its_first_reply_and_leaves_nothing_behind() -> None:
    with server.Server("any", [sys.executable, "-c", TWO_PROCESSES], {}) as running:
        readiness = running.wait_until_ready(b"audio", {})
        assert 0 < readiness.ping < readiness.reply
        (worker,) = psutil.Process(running._process.pid).children(recursive=True)
        assert server._role(worker) == "worker"
    assert not psutil.pid_exists(running._process.pid) and not worker.is_running() and not running._folder.exists()


def test_a_server_that_ends_by_itself_reports_the_reason() -> None:
    with (
        server.Server("any", [sys.executable, "-c", "raise SystemExit('no model file')"], {}) as broken,
        pytest.raises(LoadError, match="any does not start:\nno model file"),
    ):
        broken.wait_until_ready(b"audio", {})


def test_peak_memory_includes_memory_that_was_freed() -> None:
    held_and_freed = "held = bytearray(b'x') * 200_000_000; del held; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", held_and_freed], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        assert psutil.Process(process.pid).memory_info().rss < 100e6
        assert 200 < server._peak(process.pid) < 300
        process.communicate(b"\n")


# Results and the table


def test_the_page_shows_the_committed_results() -> None:
    page = MEASURED.read_text(encoding="utf-8")
    assert startup.BLOCK.text(page) == startup.table() != "", "run: python -m bench table"
    assert serve_report.BLOCK.text(page) == serve_report.tables() != "", "run: python -m bench table"


def test_committed_results_have_provenance_and_name_no_local_folder() -> None:
    expected = results.provenance()
    for path in results.RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert json.loads(text)["provenance"].keys() == expected.keys(), path.name
        assert str(work.ROOT) not in text and str(Path.home()) + "/" not in text, path.name


def test_provenance_names_machine_versions_and_commit() -> None:
    origin = results.provenance()
    assert set(origin["machine"]["flags"]) <= set(results.FLAGS)
    assert origin["machine"]["cpu"] and origin["machine"]["cores"] >= 1 and origin["machine"]["memory_gib"] >= 1
    assert origin["versions"]["torch"] == torch.__version__ and {"python", "java", "ctranslate2", "torchserve"} <= origin["versions"].keys()


def test_a_spread_has_the_median_the_lowest_and_the_highest() -> None:
    assert results.spread([3.0, 1.0, 10.0, 2.0]) == results.Spread(2.5, 1.0, 10.0, 4)


def _save(folder: Path, *, overhead_ms: float) -> None:
    origin = results.provenance() | {"commit": "0123456789", "dirty": False}
    figures = {"overhead_ms": results.spread([overhead_ms]), "call_ms": results.spread([150.0])}
    results.save(folder, "overhead", origin, {"clip_seconds": 10, "tokens": 60}, {"base": figures})


def _save_serve(folder: Path, ours: float) -> Path:
    """Rounds in which our server does `ours` clips a second and every other contender one."""
    plan = serve.Plan(concurrencies=(1, 8), rates=(0.5,), long_seconds=600)
    measured = {name: serve.Measured() for name in (contenders.OURS, "core", contenders.PLAIN, "faster-whisper batched")}
    for name, contender in measured.items():
        rate = ours if name in (contenders.OURS, "core") else 1.0
        contender.clips = {together: [Work(8 / rate, (1 / rate,) * 8, 8)] for together in (1, 8)}
        contender.long = [Work(600 / (10 * rate), (1.0,), 20)]
    mixed = {contenders.OURS: {"idle_seconds": results.spread([1.0]), "during_seconds": results.spread([2.0])}}
    arrivals = {contenders.OURS: {"0.5": serve.percentiles([1.0, 3.0])}}
    result = {
        "contenders": serve.summary(measured, plan),
        "missing": {"whisper.cpp": "no wheel | here"},
        "mixed": mixed,
        "arrivals": arrivals,
    }
    settings = {"model": "base, random weights", "tokens": 60, "clip_seconds": 10, "threads": 2, "plan": asdict(plan)}
    return results.save(folder, "serve-base", results.provenance() | {"commit": "0123456789", "dirty": False}, settings, result)


@pytest.mark.parametrize(("overhead_ms", "verdict"), [(15.0, "met"), (15.1, "missed")])
def test_the_table_shows_which_goals_are_met(tmp_path: Path, overhead_ms: float, verdict: str) -> None:
    _save(tmp_path, overhead_ms=overhead_ms)
    (row,) = (line for line in startup.table(tmp_path).splitlines() if "goal:" in line)
    assert verdict in row and f"{overhead_ms:.1f} ms" in row and "`0123456`" in startup.table(tmp_path)


@pytest.mark.parametrize(
    ("ours", "verdicts"), [(4.0, ["met"] * 4), (1.4, ["met", "missed", "met", "met"]), (0.9, ["missed"] * 3 + ["met"])]
)
def test_the_table_of_servers_under_load_shows_which_goals_are_met(tmp_path: Path, ours: float, verdicts: list[str]) -> None:
    _save_serve(tmp_path, ours)
    shown = serve_report.tables(tmp_path)
    assert ["missed" if "missed" in line else "met" for line in shown.splitlines() if "goal:" in line] == verdicts
    assert "| whisper.cpp | none: no wheel \\| here |" in shown and f"| {10 * ours:.1f} " in shown
    assert "not measured" in shown, "there was no GPU" if not torch.cuda.is_available() else ""


def test_results_under_load_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is a requirement of the bench only")
    svg = Path(plot.serve(_save_serve(tmp_path, 4.0))).read_text()
    assert svg.startswith("<?xml") and "faster-whisper batched" in svg
    path = results.save(tmp_path, "serve-memory", {}, {"warmup": 200}, {"measured": [(0, 100.0), (200, 110.0)]})
    assert "requests answered" in Path(plot.memory(path)).read_text()


def test_update_changes_the_block_and_nothing_else(tmp_path: Path) -> None:
    _save(tmp_path, overhead_ms=5.0)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{startup.BLOCK.begin}old\n{startup.BLOCK.end}\nafter\n", encoding="utf-8")
    startup.update(page, tmp_path)
    assert page.read_text(encoding="utf-8") == f"before\n{startup.BLOCK.begin}{startup.table(tmp_path)}{startup.BLOCK.end}\nafter\n"
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="needs the lines"):
        startup.update(page, tmp_path)


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert startup.table(tmp_path) == serve_report.tables(tmp_path) == ""
