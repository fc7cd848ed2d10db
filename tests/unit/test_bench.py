"""The benchmarks' own honesty: equal work for both servers, figures that come from results, a load that is what it says."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import whisper
from whisper.model import ModelDimensions

from bench import overhead, results, server, table, throughput, work
from bench.load import Connection, LoadError, Reply, closed_loop
from bench.plain.plain_handler import PlainHandler, options
from bench.plan import FULL, QUICK
from whispercore.checkpoints import write_random

TINY = ModelDimensions(80, 1500, 32, 2, 1, 51_865, 448, 32, 2, 1)


class Answers(BaseHTTPRequestHandler):
    """Keeps what arrives; answers when as many requests are open as the test wants to see, or at once."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        stub: Stub = self.server  # type: ignore[assignment]
        stub.seen.append(self.rfile.read(int(self.headers["Content-Length"])))
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
        self.seen: list[bytes] = []
        self.status = 200
        self.together = threading.Barrier(together, timeout=60)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def stub() -> Iterator[Any]:
    stubs: list[Stub] = []

    def make(together: int) -> Stub:
        stubs.append(Stub(together))
        return stubs[-1]

    yield make
    for one in stubs:
        one.shutdown()
        one.server_close()


# The load


def test_a_closed_loop_keeps_so_many_requests_open_and_sends_each_recording_equally_often(stub: Any) -> None:
    served = stub(together=4)  # answers only while four are open
    load = closed_loop(served.server_port, "any", [b"a", b"b", b"c"], {}, concurrency=4, requests=12, seed=1)
    assert len(load.replies) == 12 and sorted(served.seen) == sorted([b"a", b"b", b"c"] * 4)
    assert load.requests_per_second == pytest.approx(12 / load.wall)
    assert all(0 < reply.seconds <= load.wall for reply in load.replies)


def test_the_order_is_random_and_repeatable(stub: Any) -> None:
    served = stub(together=1)
    for _ in range(2):
        closed_loop(served.server_port, "any", [b"a", b"b"], {}, concurrency=1, requests=20, seed=3)
    expected = [b"a", b"b"] * 10
    random.Random(3).shuffle(expected)
    assert served.seen == expected * 2 and expected != [b"a", b"b"] * 10


def test_a_refused_request_is_no_measurement(stub: Any) -> None:
    served = stub(together=1)
    served.status = 503
    with pytest.raises(LoadError, match="status 503: busy"):
        closed_loop(served.server_port, "any", [b"a"], {}, concurrency=2, requests=4)


# The work


def test_clips_are_different_and_last_ten_seconds() -> None:
    clips = work.clips()
    assert len(set(clips)) == work.CLIPS
    assert {len(work.read_samples(clip)) for clip in clips} == {work.CLIP_SECONDS * work.SAMPLE_RATE}


def test_a_long_recording_lasts_as_long_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SCRATCH", tmp_path)
    path = work.long_recording(100)  # more than twice the sample
    assert len(work.read_samples(path)) / work.SAMPLE_RATE == pytest.approx(100, abs=0.2)
    assert work.long_recording(100) == path and list(tmp_path.iterdir()) == [path]


def test_the_requests_options_leave_no_room_for_a_second_pass() -> None:
    asked = work.options()
    assert (asked.temperature, asked.vad_filter, asked.language) == ((0.0,), False, "en")
    assert asked.no_speech_threshold is None and asked.logprob_threshold is None


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
    monkeypatch.setattr(handler.model, "decode", lambda mel, asked: _counted(decode(mel, asked), sampled))
    handler.handle([{"body": bytearray(clip)} for clip in work.clips()[:2]], None)
    assert sampled == [tokens, tokens], "one window for each clip, and all its tokens"


def _counted(result: whisper.DecodingResult, sampled: list[int]) -> whisper.DecodingResult:
    sampled.append(len(result.tokens))
    return result


def test_the_plain_handler_is_left_as_whisper_is_when_no_tokens_are_fixed(tiny: Path) -> None:
    assert options(whisper.load_model(str(tiny), device="cpu"), 0) == {"language": "en", "fp16": torch.cuda.is_available()}


@pytest.mark.parametrize(
    ("model", "content", "right"),
    [
        ("plain", {"tokens": [work.TOKENS]}, True),
        ("plain", {"tokens": [work.TOKENS - 1]}, False),
        ("plain", {"tokens": [work.TOKENS, work.TOKENS]}, False),
        ("whisper", {"segments": [{"tokens": [1] * (work.TOKENS - 8)}, {"tokens": [1] * 4}]}, True),
        ("whisper", {"segments": [{"tokens": [1] * (work.TOKENS + 1)}]}, False),
        ("whisper", {"segments": []}, False),
    ],
)
def test_a_reply_with_other_work_in_it_stops_the_measurement(model: str, content: dict[str, Any], right: bool) -> None:
    reply = Reply(1.0, json.dumps(content).encode())
    if right:
        throughput.check_reply(model, reply)
    else:
        with pytest.raises(RuntimeError, match=f"did not decode {work.TOKENS} tokens"):
            throughput.check_reply(model, reply)


class _Spoken:
    """A transcriber, a job and a transcript in one, that says `text`."""

    def __init__(self, text: str) -> None:
        self.text = text

    def submit(self, *_: object) -> _Spoken:
        return self

    def result(self) -> _Spoken:
        return self


@pytest.mark.parametrize("text", ["", "other words"])
def test_overhead_is_between_equal_answers_only(stub: Any, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    served = stub(together=1)
    monkeypatch.setattr(overhead, "json", SimpleNamespace(loads=lambda _: {"text": ""}))
    with Connection(served.server_port, "any") as connection:
        rounds = overhead.compare(connection, _Spoken(text), QUICK)  # type: ignore[arg-type]
        if text:
            with pytest.raises(RuntimeError, match="not the same work"):
                list(rounds)
        else:
            assert len(list(rounds)) == QUICK.overhead_rounds
            assert len(served.seen) == QUICK.overhead_rounds * (QUICK.overhead_calls + 1)


def test_as_many_requests_are_sent_as_are_to_be_open() -> None:
    for plan in (FULL, QUICK):
        for concurrency in plan.concurrencies:
            assert concurrency <= plan.requests(concurrency, patient=True) <= plan.requests(concurrency, patient=False)


# The servers

TWO_PROCESSES = """
import os, subprocess, sys
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


def test_a_server_is_ready_with_its_first_words_and_leaves_nothing_behind() -> None:
    with server.Server("any", [sys.executable, "-c", TWO_PROCESSES], {}) as running:
        readiness = running.wait_until_ready(b"audio", {})
        assert 0 < readiness.ping < readiness.reply
        (worker,) = psutil.Process(running._process.pid).children(recursive=True)
        assert server._role(worker) == "worker"
    assert not psutil.pid_exists(running._process.pid) and not worker.is_running() and not running._folder.exists()


def test_a_server_that_ends_by_itself_says_why() -> None:
    with (
        server.Server("any", [sys.executable, "-c", "raise SystemExit('no model file')"], {}) as broken,
        pytest.raises(LoadError, match="any does not start:\nno model file"),
    ):
        broken.wait_until_ready(b"audio", {})


def test_peak_memory_is_the_most_there_ever_was() -> None:
    held_and_freed = "held = bytearray(b'x') * 200_000_000; del held; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", held_and_freed], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        assert psutil.Process(process.pid).memory_info().rss < 100e6
        assert 200 < server._peak(process.pid) < 300
        process.communicate(b"\n")


# Results and the table


def test_the_readme_shows_the_committed_results() -> None:
    page = table.README.read_text(encoding="utf-8")
    assert table.block(page) == table.table(), "run: python -m bench table"


def test_committed_results_say_where_they_come_from_and_name_no_folder_of_that_machine() -> None:
    expected = results.provenance()
    for path in results.RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert json.loads(text)["provenance"].keys() == expected.keys(), path.name
        assert str(work.ROOT) not in text and str(Path.home()) + "/" not in text, path.name


def test_provenance_names_machine_versions_and_commit() -> None:
    origin = results.provenance()
    assert origin["machine"]["cpu"] and origin["machine"]["cores"] >= 1 and origin["machine"]["memory_gib"] >= 1
    assert origin["versions"]["torch"] == torch.__version__ and {"python", "java", "ctranslate2", "torchserve"} <= origin["versions"].keys()


def test_a_spread_is_the_median_between_least_and_greatest() -> None:
    assert results.spread([3.0, 1.0, 10.0, 2.0]) == results.Spread(2.5, 1.0, 10.0, 4)


def _save(folder: Path, *, overhead_ms: float, ratio: float) -> None:
    origin = results.provenance() | {"commit": "0123456789", "dirty": False}
    seen = {"overhead_ms": results.spread([overhead_ms]), "call_ms": results.spread([150.0])}
    results.save(folder, "overhead", origin, {"clip_seconds": 10, "tokens": 60}, {"base": seen})
    rates = {name: {"audio_per_second": results.spread([rate])} for name, rate in (("whisper", 8.0 * ratio), ("plain", 8.0))}
    settings = {"model": "base, random weights", "tokens": 60, "clip_seconds": 10}
    results.save(folder, "throughput", origin, settings, {"8": rates | {"ratio": results.spread([ratio])}})


@pytest.mark.parametrize(
    ("overhead_ms", "ratio", "verdicts"), [(15.0, 4.0, ["met", "met"]), (15.1, 4.0, ["missed", "met"]), (3.0, 3.9, ["met", "missed"])]
)
def test_the_table_says_which_goals_are_met(tmp_path: Path, overhead_ms: float, ratio: float, verdicts: list[str]) -> None:
    _save(tmp_path, overhead_ms=overhead_ms, ratio=ratio)
    rows = [line for line in table.table(tmp_path).splitlines() if "goal:" in line]
    assert ["missed" if "missed" in row else "met" for row in rows] == verdicts
    assert f"{overhead_ms:.1f} ms" in rows[0] and f"{8 * ratio:.1f} " in rows[1] and f"{ratio:.1f} times" in rows[1]
    assert "`0123456`" in table.table(tmp_path)


def test_update_changes_the_block_and_nothing_else(tmp_path: Path) -> None:
    _save(tmp_path, overhead_ms=5.0, ratio=5.0)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{table.BEGIN}old\n{table.END}\nafter\n", encoding="utf-8")
    table.update(page, tmp_path)
    assert page.read_text(encoding="utf-8") == f"before\n{table.BEGIN}{table.table(tmp_path)}{table.END}\nafter\n"
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="needs the lines"):
        table.update(page, tmp_path)


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert table.table(tmp_path) == ""
