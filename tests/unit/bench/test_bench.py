"""The benchmarks themselves: equal work for all contenders, the load generator, results, tables and plots."""

from __future__ import annotations

import json
import os
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
from bench.report.page import MEASURED, README
from bench.work import ROOT
from tests.unit.bench.conftest import write_sound
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import write_random
from whispercore.types import SAMPLE_RATE

TINY = ModelDimensions(80, 1500, 32, 2, 1, 51_865, 448, 32, 2, 1)


class Answers(BaseHTTPRequestHandler):
    """Records every request, and answers with its body when as many requests are open as the test expects."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        stub: Stub = self.server  # type: ignore[assignment]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        stub.bodies.append(body)
        stub.together.wait()
        body = body if stub.status == 200 else b"busy"
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
    assert [reply.body for reply in load.replies] == clips and sorted(served.bodies) == sorted(clips)
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


def test_read_speech_has_its_words(speech_folder: Path) -> None:
    material = speech.ReadSpeech()
    first, second = material.clips(2, seed=1)
    assert material.clips(1, seed=1) == [first] and first.audio != second.audio
    assert {clip.text: round(clip.seconds, 1) for clip in (first, second)} == {"ten seconds": 10.0, "eight seconds": 8.0}
    assert {len(read_samples(clip.audio)) for clip in (first, second)} == {160_000, 128_000}
    with pytest.raises(ValueError, match="the folder has 2"):
        material.clips(3, seed=1)
    whole, beginning = material.long(), material.long(15.0)
    assert (whole.text, whole.seconds, beginning.text, beginning.seconds) == ("one eight seconds", 20.0, "one", 2.0)
    assert len(read_samples(beginning.audio)) == 2 * SAMPLE_RATE


@pytest.fixture
def speech_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of real speech with a sentence of ten seconds, one too short, and a chapter with another of eight."""
    utterances = [{"start": 0, "end": 2, "text": "one"}, {"start": 10, "end": 18, "text": "eight seconds"}]
    lines: list[dict[str, Any]] = [
        {"audio": "a.wav", "text": "ten seconds", "set": "librispeech-test-clean"},
        {"audio": "b.wav", "text": "short", "set": "librispeech-test-other"},
        {"audio": "c.wav", "text": "one eight seconds", "set": "librispeech-chapters", "segments": utterances},
    ]
    for line, seconds in zip(lines, (10.0, 1.0, 20.0), strict=True):
        write_sound(tmp_path / line["audio"], seconds)
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("WHISPER_SPEECH_DATA", str(tmp_path))
    return tmp_path


OPTIONAL = {"transformers": "transformers", "whisper.cpp": "pywhispercpp"}


@pytest.fixture(params=contenders.LIBRARIES)
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a library that is installed; its converted weights are written into the test's folder."""
    name = str(request.param)
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name], reason=f"{OPTIONAL[name]} is a requirement of the bench only")
    monkeypatch.setattr(ggml, "SCRATCH", tmp_path)
    return name


@pytest.mark.slow
def test_every_library_decodes_the_requested_tokens_of_every_window(
    library: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(contenders, "checkpoint", lambda _: tiny)
    variables = {
        "WHISPER_MODEL": str(tiny),
        "WHISPER_FIXED_TOKENS": "7",
        "WHISPER_CONVERTED_DIR": str(tmp_path),
        "WHISPER_ENGINE": "openai",
    }
    monkeypatch.setattr(contenders, "environment", lambda *_, **__: variables)
    setup = contenders.Setup(size="any", device="cpu", threads=1, tokens=7)
    with contenders.LIBRARIES[library](setup) as run:
        work = contenders._timed(run, speech.clips(3, 10, seed=1), 2, "chunked", setup.tokens)
        assert (work.windows, len(work.seconds)) == (3, 3) and all(0 < seconds <= work.wall for seconds in work.seconds)
        with pytest.raises(RuntimeError, match="8 tokens were to be decoded"):
            contenders._timed(run, speech.clips(1, 10, seed=2), 1, "chunked", setup.tokens + 1)


@pytest.mark.slow
def test_every_library_ends_by_itself_with_trained_weights_and_returns_the_words_of_each_recording(library: str) -> None:
    setup = contenders.Setup(size="nano", device="cpu", threads=1)
    samples = {entry["file"]: entry["text"] for entry in json.loads((work.ROOT / "samples" / "transcripts.json").read_text())}
    clips = [
        speech.Clip(work.encode(read_samples(work.ROOT / "samples" / file)), 3.0, samples[file]) for file in ("timer.flac", "code.ogg")
    ]
    with contenders.LIBRARIES[library](setup) as run:
        done = contenders._timed(run, [clip.audio for clip in clips], 2, "sequential", setup.tokens)
    assert serve.word_error_rate([serve.Round(clips, done)]) == 0.0, done.texts
    assert done.windows == 0, "not counted"
    assert (done.batch_seconds > 0) == (library == contenders.CORE)


@pytest.mark.slow
def test_a_library_that_cannot_be_loaded_reports_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    library = contenders.Alone("whisper.cpp", contenders.Setup(size="tiny", device="cuda", threads=1, tokens=7))
    try:
        with pytest.raises(LoadError, match=r"whisper.cpp: (RuntimeError: .* CPUs only|ModuleNotFoundError)"):
            library.wait_until_ready()
    finally:
        library.stop()


def test_a_program_of_others_has_openmps_default_and_ours_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "2000")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    show = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['GOMP_SPINCOUNT'])"]
    for spins, expected in ((server.DEFAULT_SPINS, "3 300000"), ("", "3 2000")):
        with contenders._openmp(3, spins):
            assert subprocess.check_output(show, text=True).strip() == expected
        assert os.environ["GOMP_SPINCOUNT"] == "2000" and "OMP_NUM_THREADS" not in os.environ


def test_q8_0_scales_each_block_by_its_largest_weight() -> None:
    values = np.zeros((2, ggml.BLOCK), np.float32)
    values[0, :3] = 1.27, -0.5, 0.011
    packed = np.frombuffer(ggml.q8_0(values), dtype=[("scale", "<f2"), ("weights", "i1", ggml.BLOCK)])
    assert packed["weights"][0, :4].tolist() == [127, -50, 1, 0] and packed["scale"][0] == pytest.approx(0.01, rel=1e-3)
    assert not packed["weights"][1].any() and packed["scale"][1] == 0


class _Spoken:
    """Recordings whose bytes are their seeds and numbers; all have the same words."""

    name = "words"

    def clips(self, count: int, seed: int) -> list[speech.Clip]:
        return [speech.Clip(b"%d %d" % (seed, number), 10.0, "red green blue white") for number in range(count)]

    def long(self, seconds: float = 0.0) -> speech.Clip:
        return speech.Clip(b"long %d" % seconds, seconds or 500.0, "red green blue white")


class _Steady:
    """A contender that takes the same time for every recording, and hears the same text in it."""

    def __init__(self, name: str, seconds: float, text: str = "red green blue white") -> None:
        self.name, self.seconds, self.text, self.used = name, seconds, text, 0.0
        self.got: list[tuple[list[bytes], int, str]] = []

    def processor_seconds(self) -> float:
        return self.used

    def peak_megabytes(self) -> float:
        return 100.0

    def load(self, recordings: Sequence[bytes], together: int, strategy: str = "chunked") -> Work:
        self.got.append((list(recordings), together, strategy))
        self.used += 2 * self.seconds * len(recordings)
        count = len(recordings)
        return Work(self.seconds * count, (self.seconds,) * count, 0, (self.text,) * count, batch_seconds=0.5)

    def times(self, together: int) -> int:
        """How many loads of this many recordings at once it got, without those of the long recording."""
        return sum(number == together and not recordings[0].startswith(b"long") for recordings, number, _ in self.got)


PLAN = serve.Plan(rounds=2, clips={1: 8, 8: 24}, long_seconds=0.0, beside=1, rates=(), arrivals=0)


def _loads(*running: _Steady, missing: dict[str, str], log: list[str]) -> serve.Loads:
    by_name: dict[str, contenders.Contender] = {contender.name: contender for contender in running}
    return serve.Loads(by_name, {name: {} for name in by_name}, missing, _Spoken(), PLAN, log.append)


def test_contenders_take_turns_and_get_the_same_recordings() -> None:
    ours, core = _Steady(contenders.OURS, 1.0, "red green blue"), _Steady(contenders.CORE, 0.9)
    workers, slow = _Steady(contenders.WORKERS, 2.0), _Steady("openai-whisper", 4.0)
    log = list[str]()
    loads = _loads(ours, core, workers, slow, missing={}, log=log)
    for number in range(2):
        for together in PLAN.clips:
            loads.clips(together, number)
        loads.long(number, every_strategy=True)
    assert ours.got == core.got and [strategy for _, _, strategy in ours.got] == ["chunked"] * 3 + ["sequential"] + ["chunked"] * 3 + [
        "sequential"
    ]
    assert (workers.times(1), workers.times(8)) == (0, 2) and workers.got[0][0] == ours.got[1][0]
    assert slow.got == [(ours.got[0][0][:4], 1, "chunked"), ([b"long 60"], 1, "sequential")], "one short round"
    figures = serve.summary(loads.measured, {contenders.CORE: 100.0})
    assert figures[contenders.CORE]["loads"]["8"]["ratio"].median == pytest.approx(0.9)
    assert figures[contenders.CORE]["loads"]["8"]["processor_seconds_an_hour"].median == pytest.approx(2 * 0.9 * 360)
    assert figures[contenders.OURS]["loads"]["1"]["wer"] == pytest.approx(0.25) and figures[contenders.CORE]["loads"]["1"]["wer"] == 0.0
    assert figures["openai-whisper"]["loads"]["1"]["ratio"].median == pytest.approx(4.0)
    assert figures["openai-whisper"]["loads"]["sequential"]["audio_per_second"].median == pytest.approx(15.0)
    assert (figures["openai-whisper"]["slow"], figures[contenders.CORE]["peak_mb"]) == (True, 100.0)


def test_the_order_of_contenders_changes_with_the_round() -> None:
    log = list[str]()
    loads = _loads(_Steady(contenders.OURS, 1.0), _Steady(contenders.CORE, 1.0), missing={}, log=log)
    for number in range(2):
        loads.clips(1, number)
    assert [line.split(": ")[1].split(" ")[0] for line in log] == ["this", "core", "core", "this"]
    assert log[0] == "1 at once, round 1: this server 10.0 s of audio a second, WER 0.0%"


def test_without_words_there_is_no_word_error_rate() -> None:
    clips, work = [speech.Clip(b"", 10.0)], Work(1.0, (1.0,), 1, ("made up",))
    assert serve.word_error_rate([serve.Round(clips, work)]) is None


def test_random_weights_transcribe_the_long_recording_by_one_strategy() -> None:
    ours = _Steady(contenders.OURS, 1.0)
    sequential = _Steady(contenders.SEQUENTIAL, 2.0)
    loads = _loads(ours, sequential, missing={}, log=[])
    loads.long(0, every_strategy=False)
    assert [strategy for _, _, strategy in ours.got] == ["chunked"]
    figures = serve.summary(loads.measured, {})
    assert figures[contenders.SEQUENTIAL]["loads"]["sequential"]["ratio"].median == pytest.approx(2.0), "beside ours, chunked"


def test_a_failing_peer_is_left_out_and_our_failure_is_raised() -> None:
    class Broken(_Steady):
        def load(self, recordings: Sequence[bytes], together: int, strategy: str = "chunked") -> Work:
            raise LoadError("it died\nof this")

    for name in (contenders.OURS, contenders.CORE):
        missing: dict[str, str] = {}
        loads = _loads(Broken(name, 1.0), missing=missing, log=[])
        if name == contenders.OURS:
            with pytest.raises(LoadError):
                loads.clips(1, 0)
        else:
            loads.clips(1, 0)
            loads.long(0, every_strategy=True)
            assert missing == {contenders.CORE: "it died"} and loads.measured == {contenders.CORE: {}}


@pytest.mark.parametrize(
    ("tokens", "bfloat16", "flags", "name"),
    [
        (0, True, ["avx2", "avx512_vnni", "avx512_bf16"], "serve-base"),
        (0, False, ["avx2", "avx512_vnni", "avx512_bf16"], "serve-base-vnni"),
        (0, True, ["avx2", "avx_vnni"], "serve-base-vnni"),
        (60, True, ["avx2"], "serve-base-random-avx2"),
    ],
)
def test_a_result_is_named_after_weights_and_processor(tokens: int, bfloat16: bool, flags: list[str], name: str) -> None:
    setup = contenders.Setup(size="base", device="cpu", threads=1, tokens=tokens, bfloat16=bfloat16)
    assert serve.file_name(setup, flags) == name


def test_without_bfloat16_our_server_has_the_same_weights_and_onednns_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "ROOT", tmp_path)
    monkeypatch.setenv("WHISPER_MODELS_DIR", str(ROOT / "whisper-models"))
    limited, unlimited = (contenders.Setup(size="nano", device="cpu", threads=1, bfloat16=bfloat16).variables for bfloat16 in (False, True))
    assert limited == unlimited | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}


def test_without_weights_or_recordings_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHISPER_SPEECH_DATA", str(tmp_path))
    assert serve.main(["--results", str(tmp_path), "--model", "nano"]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "set WHISPER_SPEECH_DATA" in message and "--random needs neither" in message and not list(tmp_path.iterdir())


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
        assert 200 < server.peak_megabytes(process.pid) < 300
        process.communicate(b"\n")


# Results and the table


def test_the_page_shows_the_committed_results() -> None:
    page = MEASURED.read_text(encoding="utf-8")
    assert startup.BLOCK.text(page) == startup.table() != "", "run: python -m bench table"
    assert serve_report.BLOCK.text(page) == serve_report.tables() != "", "run: python -m bench table"
    assert serve_report.SPEED.text(README.read_text(encoding="utf-8")) == serve_report.readme() != "", "run: python -m bench table"


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


def _save_serve(folder: Path, ours: float, *, wer: float = 0.0, name: str = "serve-base", tokens: int = 0, bfloat16: bool = True) -> Path:
    """A round in which our server is `ours` times as fast as every other contender, and has `wer` where they make no error."""
    measured: serve.Measured = {}
    text = "" if tokens else "red " * 1000
    heard = "blue " * round(1000 * wer) + "red " * round(1000 - 1000 * wer)
    for contender in (contenders.OURS, contenders.CORE, contenders.SEQUENTIAL, contenders.BATCHED, contenders.WORKERS, "openai-whisper"):
        mine = contender in (contenders.OURS, contenders.CORE)
        seconds = 1.0 if mine else ours
        done = Work(seconds, (seconds,), 0, (heard if mine else text,), processor=seconds, batch_seconds=0.6 if mine else 0.0)
        one = [serve.Round([speech.Clip(b"", 10.0, text)], done)]
        keys = ("1", "8", "32", "chunked", "sequential") if mine else ("1", "8", "chunked", "sequential")
        measured[contender] = {key: one for key in keys if contender != "openai-whisper" or key in ("1", "sequential")}
    mixed = {
        contenders.OURS: {name: results.spread(seconds) for name, seconds in (("idle_seconds", [1.0, 1.2]), ("during_seconds", [1.1, 1.7]))}
    }
    result = {
        "contenders": serve.summary(measured, {contenders.OURS: 900.0}),
        "missing": {"whisper.cpp": "no wheel | here"},
        "mixed": mixed,
        "arrivals": {contenders.OURS: {"0.5": serve.percentiles([1.0, 3.0])}},
    }
    settings = {
        "model": "base, random weights" if tokens else "base",
        "tokens": tokens,
        "threads": 2,
        "bfloat16": bfloat16,
        "recordings": "sentences",
        "long_seconds": 526.2,
        "slow": {"long_seconds": 53.1, "clips": 4},
        "plan": asdict(serve.FULL),
    }
    return results.save(folder, name, results.provenance() | {"commit": "0123456789", "dirty": False}, settings, result)


@pytest.mark.parametrize(("overhead_ms", "verdict"), [(15.0, "met"), (15.1, "missed")])
def test_the_table_shows_which_goals_are_met(tmp_path: Path, overhead_ms: float, verdict: str) -> None:
    _save(tmp_path, overhead_ms=overhead_ms)
    (row,) = (line for line in startup.table(tmp_path).splitlines() if "goal:" in line)
    assert verdict in row and f"{overhead_ms:.1f} ms" in row and "`0123456`" in startup.table(tmp_path)


@pytest.mark.parametrize(
    ("ours", "wer", "verdicts"),
    [
        (4.0, 0.0, ["met"] * 5),
        (1.4, 0.0, ["missed", "met", "missed", "met", "met"]),
        (4.0, 0.005, ["met"] * 5),
        (4.0, 0.006, ["missed"] * 3 + ["met"] * 2),
    ],
)
def test_the_table_of_servers_under_load_shows_which_goals_are_met(tmp_path: Path, ours: float, wer: float, verdicts: list[str]) -> None:
    _save_serve(tmp_path, ours, wer=wer)
    shown = serve_report.tables(tmp_path)
    assert ["missed" if "missed" in line else "met" for line in shown.splitlines() if "goal:" in line] == verdicts
    assert "| whisper.cpp | none: no wheel \\| here |" in shown and f"| **this server** | 10.0, {wer:.1%} |" in shown
    assert "| openai-whisper ¹ |  | " in shown and "the longest batch of the core 0.60 s" in shown


def test_random_weights_have_a_table_of_their_own_without_words(tmp_path: Path) -> None:
    _save_serve(tmp_path, 4.0, name="serve-base-random", tokens=60)
    assert serve_report.readme(tmp_path) == "", "the README shows trained weights only"
    shown = serve_report.tables(tmp_path)
    assert "**base, random weights**, 60 tokens of every window" in shown and "WER" not in shown
    _save_serve(tmp_path, 4.0)
    assert serve_report.tables(tmp_path).startswith("**base**; "), "trained weights first"


def test_a_result_without_bfloat16_follows_the_one_with_it(tmp_path: Path) -> None:
    _save_serve(tmp_path, 2.0, name="serve-base-vnni", bfloat16=False)
    assert "(emulated)" in serve_report.readme(tmp_path), "the only one there is"
    _save_serve(tmp_path, 4.0)
    first, second = serve_report.tables(tmp_path).split("**base**; ")[1:]
    assert "Emulated: a CPU without bfloat16" in second and "Emulated" not in first
    assert "emulated" not in serve_report.readme(tmp_path)


def test_the_readmes_table_compares_the_fastest_mode_of_every_program(tmp_path: Path) -> None:
    _save_serve(tmp_path, 4.0, wer=0.005)
    text = serve_report.readme(tmp_path)
    assert "| `base`: × real time, WER | this server | faster-whisper | openai-whisper |" in text
    assert "| a recording of 9 min, chunked or batched | 10.0, 0.5% | 2.5, 0.0% |  |" in text
    assert "| sentences, 8 at once | 10.0, 0.5% | 2.5, 0.0% | 2.5, 0.0% |" in text, "openai-whisper takes one at a time"
    assert "A sentence takes 1.1 s on an idle server, 1.4 s beside that recording, 1.7 s at worst." in text


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
    assert startup.table(tmp_path) == serve_report.tables(tmp_path) == serve_report.readme(tmp_path) == ""
