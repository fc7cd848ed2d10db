"""The paced device, the loads on it, and their table."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench import host, paced, results, served
from bench.report import host as report
from bench.work import encode
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.torchserve.handshake import CLIENT_HEADER
from whispercore.types import SAMPLE_RATE, Decoding, Window

FAST = 1e-6
SPEECH = Decoding(language="en")


def noise(seconds: float) -> Any:
    return np.random.default_rng(0).normal(scale=0.1, size=round(seconds * SAMPLE_RATE)).astype(np.float32)


class Clock:
    """Stands still, unless somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_snapshot_arrives_when_the_work_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(paced, "time", clock)
    device = paced.PacedDevice(2.0)
    device.work(0.5)
    first = device.snapshot([])
    device.work(1.0)
    second = device.snapshot([])
    first.wait()
    assert clock.now == pytest.approx(101.0), "later work is not waited for"
    clock.now += 10.0
    second.wait()
    assert clock.now == pytest.approx(111.0), "the device worked while the host did something else"
    device.work(0.5)
    device.snapshot([]).wait()
    assert clock.now == pytest.approx(112.0) and device.seconds == pytest.approx(4.0)


def test_times_are_those_that_were_measured() -> None:
    assert paced.entry_seconds(8) == pytest.approx(46e-3) and paced.entry_seconds(1) < 10e-3
    assert [paced.step_seconds(count) for count in (1, 8, 128)] == pytest.approx([0.62e-3, 0.70e-3, 2.73e-3])
    assert 0.70e-3 < paced.step_seconds(32) < 2.73e-3


@pytest.mark.parametrize("seconds", [30.0, 10.0, 0.4])
def test_the_paced_engine_gives_text_that_needs_no_retry(seconds: float) -> None:
    engine = paced.PacedEngine(FAST, max_batch=4)
    aligned = replace(SPEECH, timestamps=False, alignment="all")
    timed, placed, *_ = (engine.decode([Window(noise(seconds), 0.0, decoding)] * 6)[0] for decoding in (SPEECH, aligned))
    assert max(len(timed.tokens), len(placed.tokens)) <= round(seconds * paced.TOKENS_PER_SECOND) + 1
    assert timed.text and placed.text and timed.compression_ratio < 2.4 and placed.compression_ratio < 2.4
    assert [timed.avg_logprob, placed.avg_logprob] == pytest.approx([paced.LOGPROB] * 2)
    assert len(placed.token_times) == len(placed.tokens) + 1
    assert list(placed.token_times) == sorted(placed.token_times) and placed.token_times[-1] <= seconds


def test_a_load_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "pieces", lambda seconds: [encode(noise(seconds))])
    monkeypatch.setattr(host, "CLIPS_AT_ONCE", {2: 4})
    engine = paced.PacedEngine(FAST, max_batch=4)
    with Transcriber(Settings(model=paced.SIZE), engine=engine) as transcriber:
        cost = host.clips(2)(engine, transcriber)
        alone = host.ceiling(engine, transcriber)
    assert cost.audio == 40 and cost.windows == 4 and len(cost.latencies) == 4 and 1 <= cost.launches <= 4
    assert set(cost.processor) == {"reading", "engine", "outcomes", "others"} and min(cost.processor.values()) >= 0.0
    assert cost.processor["reading"] > 0.0 and cost.processor["engine"] > 0.0 and cost.processor["outcomes"] > 0.0
    assert alone.windows == 8 and alone.launches >= 1 and alone.device > 0.0
    figures = host.summary([cost, cost])
    assert figures["rtfx"].median == pytest.approx(40 / cost.seconds, rel=1e-3) and figures["latency"].count == 8


@pytest.mark.slow
def test_a_load_over_http_is_measured() -> None:
    engine = paced.PacedEngine(FAST, max_batch=4)
    transcriber = Transcriber(Settings(model=paced.SIZE, client_header=CLIENT_HEADER), engine=engine)
    with served.gateway(transcriber) as url:
        recordings = [encode(noise(10.0)), encode(noise(9.0))]
        cost = host.over_http(url, engine, transcriber, recordings, "flac", at_once=2, repeat=2, seconds=10, vad=False)
        with pytest.raises(subprocess.CalledProcessError):
            served.send(url, [b"no sound"], "flac", at_once=1)
    assert cost.audio == 40 and cost.windows == 4 and len(cost.latencies) == 4
    assert 0.0 < min(cost.latencies) <= cost.seconds


def test_the_table_is_that_of_the_results() -> None:
    content = results.load(results.RESULTS, "host")
    assert content and report.BLOCK.text(report.PAGE.read_text(encoding="utf-8")) == report.table(content["result"])
