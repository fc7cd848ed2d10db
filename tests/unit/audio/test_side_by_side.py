"""A recording decoded by several copies of this process has the samples that one process decodes."""

from __future__ import annotations

import gc
import io
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from tests.unit.audio.test_clock import Kind
from tests.unit.audio.test_clock import mux as mux_ticks
from tests.unit.audio.test_recording import encode, sweep
from whispercore.audio import recording as recording_module
from whispercore.audio import side_by_side
from whispercore.audio.clock import Clock
from whispercore.audio.recording import open_recording
from whispercore.audio.threads import AudioThreads
from whispercore.errors import TooLarge
from whispercore.types import Samples

PROCESSES = 3
EXACT = [
    ("mp3", "libmp3lame", 44_100, 2),
    ("mp3", "libmp3lame", 16_000, 1),
    ("ogg", "libopus", 48_000, 1),
    ("webm", "libopus", 48_000, 2),
    ("ogg", "libvorbis", 44_100, 2),
    ("flac", "flac", 44_100, 1),
    ("mp4", "alac", 44_100, 1),
]
WITH_NOISE = [
    ("ipod", "aac", 44_100, 1),
    ("matroska", "aac", 48_000, 2),
    ("adts", "aac", 16_000, 1),
    ("ac3", "ac3", 48_000, 1),
    ("mpeg", "mp2", 48_000, 1),
]
"""These decoders fill bands with noise, or dither, from a generator whose state differs."""


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four seconds, and every recording is long enough."""
    monkeypatch.setattr(side_by_side, "_PART_SECONDS", 4.0)
    monkeypatch.setattr(recording_module, "LONG_SECONDS", 5.0)


@pytest.fixture(params=[False, True], ids=["alone", "threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[AudioThreads | None]:
    audio_threads = AudioThreads(2) if request.param else None
    yield audio_threads
    if audio_threads:
        audio_threads.close()


class Passed:
    """Counts the parts that came from copies, and those that this process had to decode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[bool] = []
        passes = Clock.passes

        def counted(clock: Clock, *arguments: Any) -> bool:
            self.parts.append(passes(clock, *arguments))
            return self.parts[-1]

        monkeypatch.setattr(Clock, "passes", counted)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Passed:
    return Passed(monkeypatch)


def stereo(seconds: float, rate: int, channels: int) -> Samples:
    return np.stack([sweep(seconds, rate), 0.3 * sweep(seconds, rate)][:channels])


def read(data: Any, processes: int, threads: AudioThreads | None = None, **options: Any) -> tuple[Samples, list[str]]:
    with open_recording(data, processes=processes, threads=threads, **options) as recording:
        samples = np.concatenate(list(recording.blocks()))
        return samples, recording.warnings


def check(data: Any, threads: AudioThreads | None = None, *, error: float = 0.0) -> list[str]:
    """The same samples and warnings as from one process; returns the warnings."""
    one, several = read(data, 1), read(data, PROCESSES, threads)
    assert len(several[0]) == len(one[0]) and several[1] == one[1]
    assert np.linalg.norm(several[0] - one[0]) <= error * np.linalg.norm(one[0])
    return one[1]


@pytest.mark.parametrize(("container", "codec", "rate", "channels"), EXACT)
def test_the_samples_are_those_of_one_process(
    container: str, codec: str, rate: int, channels: int, threads: AudioThreads | None, passed: Passed
) -> None:
    assert check(encode(stereo(18, rate, channels), container, codec, rate), threads) == []
    assert passed.parts.count(True) >= 3


@pytest.mark.parametrize(("container", "codec", "rate", "channels"), WITH_NOISE)
def test_no_sample_is_lost_or_doubled(container: str, codec: str, rate: int, channels: int, passed: Passed) -> None:
    check(encode(stereo(18, rate, channels), container, codec, rate), error=0.02)
    assert passed.parts.count(True) >= 3


def test_a_part_with_a_gap_in_its_times_is_decoded_here(threads: AudioThreads | None, passed: Passed) -> None:
    data, _ = mux_ticks(Kind("webm", "libopus"), 24, keeps=lambda time: not 9 < time < 10.5, moves=lambda time: time + 2 * (time > 17))
    check(data, threads)
    assert True in passed.parts and False in passed.parts


@pytest.mark.parametrize("kind", [Kind("ogg", "libopus"), Kind("mp4", "aac"), Kind("mpegts", "aac"), Kind("flv", "aac", 44_100)], ids=str)
def test_times_that_jump_change_nothing(kind: Kind) -> None:
    for moves in (lambda time: time + 3 * (time > 12), lambda time: time * 1.004, lambda time: time + 0.05 * (time // 7)):
        check(mux_ticks(kind, 20, moves=moves)[0], error=0.02)


def test_damage_changes_nothing(threads: AudioThreads | None) -> None:
    data = bytearray(encode(sweep(20, 44_100), "mp3", "libmp3lame", 44_100))
    for begin in (len(data) // 4, len(data) // 2):
        data[begin : begin + 2_000] = bytes(range(250)) * 8
    check(bytes(data), threads)
    assert any("truncated" in warning or "broken" in warning for warning in check(encode(sweep(20), "flac", "flac")[:-20_000], threads))


def test_channels_that_cancel_each_other_are_left_to_one_process(threads: AudioThreads | None) -> None:
    signal = sweep(20, 44_100)
    opposite = np.stack([signal, np.where(np.arange(len(signal)) > 9 * 44_100, -signal, signal)])
    # where they begin to cancel, decisions for half a second at a time begin at another sample
    assert any("out of phase" in warning for warning in check(encode(opposite, "flac", "flac", 44_100), threads, error=0.05))


def test_a_rate_that_changes_is_left_to_one_process(threads: AudioThreads | None) -> None:
    data = encode(sweep(12, 44_100), "mp3", "libmp3lame", 44_100) + encode(sweep(9, 48_000), "mp3", "libmp3lame", 48_000)
    check(data, threads)


def test_a_copy_that_is_killed_costs_nothing(threads: AudioThreads | None) -> None:
    data = encode(sweep(40, 44_100), "mp3", "libmp3lame", 44_100)
    with open_recording(data, processes=PROCESSES, threads=threads) as recording:
        blocks = recording.blocks()
        samples = [next(blocks)]
        assert recording._forks
        os.kill(recording._forks.forks[1]._pid, signal.SIGKILL)
        samples += blocks
    assert np.array_equal(np.concatenate(samples), read(data, 1)[0])


def test_no_copy_outlives_the_recording(threads: AudioThreads | None) -> None:
    data = encode(sweep(40, 44_100), "mp3", "libmp3lame", 44_100)
    before = set(psutil.Process().children())
    with open_recording(data, processes=PROCESSES, threads=threads) as recording:
        blocks = recording.blocks()
        next(blocks)
        assert len(set(psutil.Process().children()) - before) == PROCESSES
    assert set(psutil.Process().children()) == before
    with pytest.raises(TooLarge):
        read(data, PROCESSES, threads, max_seconds=10.0)
    gc.collect()
    assert set(psutil.Process().children()) == before


def test_only_a_long_recording_with_a_position_of_its_own_is_copied(passed: Passed) -> None:
    data = encode(sweep(20), "mp3", "libmp3lame")
    check(io.BytesIO(data))
    check(encode(sweep(4), "mp3", "libmp3lame"))
    check(encode(sweep(20), "wav", "pcm_s16le"))
    assert passed.parts == []
