"""The attacks of `bench hostile`, how their answers are counted, and what the pages show of them."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench import hostile, mutations, odd_requests, results
from bench.report import hostile as report
from bench.report.page import MEASURED
from whispercore.api.fields import TYPES
from whispercore.audio.recording import CONTAINERS, read_samples
from whispercore.types import SAMPLE_RATE

PATHS = odd_requests.PATHS[:4]


# The attacks


def test_undamaged_files_are_speech_of_many_formats() -> None:
    files = mutations.originals()
    assert len(files) >= 55, "FFmpeg's build lacks many encoders"
    containers = {container for container, _, _ in mutations.FORMATS}
    assert len(containers) >= 25 and len(CONTAINERS.split(",")) >= 25
    for name in ("wav pcm_u8", "ogg libopus", "ipod aac", "mpegts mp2", "asf wmav2"):
        assert len(read_samples(files[name])) / SAMPLE_RATE == pytest.approx(mutations.SECONDS, abs=0.2), name


def test_every_mutation_changes_files_and_the_same_seed_makes_the_same_file() -> None:
    made = [mutations.damaged(f"0 {number}") for number in range(400)]
    assert [mutations.damaged(f"0 {number}").data for number in range(0, 400, 40)] == [file.data for file in made[::40]]
    originals = set(mutations.originals().values())
    assert sum(file.data in originals for file in made) < 40
    steps = Counter(step for file in made for step in file.what.partition(": ")[2].split(", "))
    assert steps.keys() == mutations.MUTATIONS.keys()
    assert all(len(file.data) <= mutations.LARGEST for file in made)
    assert sum(len(file.data) >= 64 * 1024 for file in made) > 40, "large enough to be opened in another process first"


def head(request: odd_requests.OddRequest) -> str:
    return request.data.partition(b"\r\n\r\n")[0].decode(errors="replace")


def test_requests_reach_every_option_every_path_and_every_form() -> None:
    made = [odd_requests.options(0, number, PATHS) for number in range(2_000)]
    assert made[7] == odd_requests.options(0, 7, PATHS) != odd_requests.options(1, 7, PATHS)
    text = "\n".join(request.what for request in made)
    assert not [name for name in TYPES if f" {name}=" not in text and f" {name}[" not in text]
    forms = Counter(request.what.partition(":")[0] for request in made)
    assert {"headers", "form", "json", "query", "urlencoded"} <= forms.keys()
    assert {head(request).split()[1].partition("?")[0] for request in made} >= set(PATHS) | {"/ping"}
    assert any("transfer-encoding: chunked" in head(request).lower() for request in made)
    assert "malformed" not in text, "TorchServe's front end answers malformed forms with a 500"
    assert any("malformed" in odd_requests.options(0, number, odd_requests.PATHS).what for number in range(300))


def test_media_requests_carry_the_damaged_file() -> None:
    made = [odd_requests.media(0, number, PATHS) for number in range(200)]
    assert all(": " in request.what for request in made)
    raw = [number for number, request in enumerate(made) if request.data.endswith(mutations.damaged(f"0 {number}").data)]
    assert len(raw) > 60
    assert any("multipart/form-data" in head(request) for request in made)
    assert any("application/json" in head(request) for request in made)


def test_a_form_is_parsed_as_it_was_meant() -> None:
    body = odd_requests.multipart("b", [("language", "en"), ("file", b"\r\n--x"), ('a"b', "1")])
    assert body == (
        b'--b\r\nContent-Disposition: form-data; name="language"\r\n\r\nen\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="clip"\r\n\r\n\r\n--x\r\n'
        b'--b\r\nContent-Disposition: form-data; name="a\\"b"\r\n\r\n1\r\n--b--\r\n'
    )


# The answers


class Answers(BaseHTTPRequestHandler):
    """Answers with the status that the path names; 0: not at all."""

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status = int(self.path.strip("/"))
        if not status:
            self.connection.close()
            return
        body = {200: b'{"text": "Hello "}', 400: b'{"error": {"message": "why"}}', 500: b"{}", 404: b"gone"}[status]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "fault", "is_clear"), [(200, "", True), (400, "", True), (404, "", False), (500, "5xx", False), (0, "no answer", True)]
)
def test_faults_of_answers(port: int, status: int, fault: str, is_clear: bool) -> None:
    answer = hostile.send(port, odd_requests.good(f"/{status}", b"clip"))
    assert (answer.status, answer.fault, answer.is_clear) == (status, fault, is_clear)
    assert answer.text == ("Hello" if status == 200 else "")


def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = hostile.send(listener.getsockname()[1], odd_requests.good("/", b"clip"), timeout=0.2)
    assert (answer.status, answer.fault) == (0, "timeout")


def test_an_error_in_a_reply_that_has_begun_is_a_fault() -> None:
    assert hostile.Answer(200, b'{"error":{"message":"x","type":"server_error"}}', 1.0).fault == "error after 200"
    assert not hostile.Answer(200, b'{"error":{"message":"x","type":"invalid_request_error"}}', 1.0).fault


def test_attacks_are_counted_and_those_with_faults_are_kept(port: int, tmp_path: Path) -> None:
    requests = [("media", odd_requests.OddRequest(f"r{status}", odd_requests.good(f"/{status}", b"x"))) for status in (200, 400, 500, 0)]
    attacks = hostile.Attacks(port, tmp_path / "failures", float("inf"), lambda _: None)
    attacks.send_all(iter(requests), together=3)
    figures = attacks.tallies["media"].figures()
    assert figures["sent"] == 4 and figures["statuses"] == {"0": 1, "200": 1, "400": 1, "500": 1}
    assert figures["faults"] == {"5xx": 1, "no answer": 1} and figures["without_a_reason"] == 1
    kept = sorted((tmp_path / "failures").iterdir())
    assert [path.read_bytes() for path in kept] == [requests[2][1].data, requests[3][1].data]
    late = hostile.Attacks(port, tmp_path / "late", 0.0, lambda _: None)
    late.send_all(iter(requests), together=1)
    assert not late.tallies, "the time was over"


def test_both_kinds_take_turns() -> None:
    kinds = [kind for kind, _ in hostile.interleaved(0, 3, 2, PATHS)]
    assert kinds == ["media", "options", "media", "options", "media"]


@pytest.mark.parametrize(("front", "roles"), [("torchserve", "wws"), ("gateway", "wwggs"), ("inprocess", "gg")])
def test_the_processes_of_each_front_are_killed(front: str, roles: str) -> None:
    signals = hostile.killed(hostile._parser().parse_args(["--front", front, "--kills", "2"]))
    letters = {("worker", signal.SIGKILL): "w", ("gateway", signal.SIGKILL): "g", ("worker", signal.SIGSTOP): "s"}
    assert "".join(letters[role, number] for role, number in signals) == roles


def test_percentiles_of_the_innocent_client() -> None:
    assert hostile.latencies([float(value) for value in range(1, 101)]) == {"answered": 100, "p50": 50.5, "p95": 95.0, "max": 100.0}
    assert hostile.latencies([2.0])["p95"] == 2.0


# The pages

RESULT: dict[str, Any] = {
    "minutes": 11.6,
    "paths": ["/predictions/whisper"],
    "attacks": {
        "media": {
            "sent": 2000,
            "statuses": {"0": 1, "200": 1200, "422": 798, "500": 1},
            "faults": {"5xx": 1, "timeout": 1},
            "without_a_reason": 0,
            "slowest": {"seconds": 9.1, "what": "x"},
        }
    },
    "dead_workers": 0,
    "innocent": {"answered": 99, "p50": 0.2, "p95": 0.7, "max": 1.0, "lost": 1, "instead": ["status 500"]},
    "memory_mb": {"worker": {"start": 700.0, "end": 1000.0}},
    "kills": [
        {
            **{"process": "worker", "signal": "SIGKILL", "open": 8, "open_failed": 7, "open_failed_within_seconds": 0.4},
            **{"sent_after": 8, "sent_after_answered": 8, "good_seconds": seconds},
        }
        for seconds in (4.5, 6.7)
    ],
}


def saved(folder: Path, **changes: Any) -> Path:
    settings = {
        "front": "gateway",
        "media": 2000,
        "options": 0,
        "seed": 3,
        "together": 4,
        "model": "nano",
        "formats": 61,
        "beat_seconds": 1.0,
    }
    results.save(folder, "hostile", results.provenance() | {"commit": "0123456789", "dirty": False}, settings, RESULT | changes)
    return folder


def test_the_table_shows_what_the_server_did_not_stand(tmp_path: Path) -> None:
    shown = report.table(saved(tmp_path))
    assert "| damaged recordings | 2,000 | 1,200 × 200, 798 × 422, 1 × 500 | 1 | 1 | 0 | 9.1 s |" in shown
    assert (
        "`0123456`" in shown
        and "**missed**" in shown
        and "SIGKILL to the worker, 2 times: 14 of 16 open requests got an error, within 0.4 s" in shown
    )
    assert "the next good reply after 4.5, 6.7 s" in shown and "SIGSTOP" not in shown
    media = RESULT["attacks"]["media"] | {"faults": {}}
    good = report.table(saved(tmp_path, attacks={"media": media}, innocent=RESULT["innocent"] | {"lost": 0}))
    assert good.splitlines()[-1].endswith(": met")


def test_a_run_with_a_fault_has_failed() -> None:
    media = RESULT["attacks"]["media"] | {"faults": {}}
    good = RESULT | {"attacks": {"media": media}, "innocent": RESULT["innocent"] | {"lost": 0}}
    assert report.stood(good)
    assert not any(
        report.stood(good | change) for change in ({"dead_workers": 1}, {"innocent": RESULT["innocent"]}, {"attacks": RESULT["attacks"]})
    )
    assert not report.stood(good | {"attacks": {"media": media | {"without_a_reason": 1}}})


def test_the_readme_gets_its_lines(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("no block")
    assert not report.update_readme(page, saved(tmp_path))
    page.write_text(f"a\n{report.BLOCK.begin}{report.BLOCK.end}\nb\n")
    assert report.update_readme(page, tmp_path)
    text = page.read_text()
    assert "2,000 damaged recordings, 4 at once:" in text and "1 of 100 requests of another client lost" in text
    assert "After a kill -9 of a process the next good reply came within 7 s." in text
    assert report.table(tmp_path / "none") == report.readme(tmp_path / "none") == ""


def test_the_page_shows_the_committed_result() -> None:
    page = MEASURED.read_text(encoding="utf-8")
    assert report.BLOCK.text(page) == report.table() != "", "run: python -m bench table"
    content = json.loads((results.RESULTS / "hostile.json").read_text(encoding="utf-8"))
    assert report.stood(content["result"]), "the committed result is of a server that stood the attacks"
