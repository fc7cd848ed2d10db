"""The streaming detector on the bundled samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from gateway.realtime.audio import Pcm
from gateway.realtime.options import ServerVad
from gateway.realtime.turns import Started, Stopped, Turns
from gateway.realtime.voices import StreamingVoiceDetector

SAMPLES = Path(__file__).resolve().parents[4] / "samples"


def silence(seconds: float) -> Pcm:
    return np.zeros(round(16_000 * seconds), np.int16)


def recording(name: str, gain: float = 1.0) -> Pcm:
    sound, rate = soundfile.read(SAMPLES / name, dtype="float32")
    return (soxr.resample(sound, rate, 16_000) * gain * 32_767).astype(np.int16)


def turns(sound: Pcm, size: int) -> list[tuple[type, float]]:
    detector, found = StreamingVoiceDetector(), Turns(ServerVad(silence_duration_ms=700))
    probabilities = [p for at in range(0, len(sound), size) for p in detector(sound[at : at + size])]
    return [(type(change), change.at / 16_000) for p in probabilities for change in found.feed(p)]


@pytest.mark.parametrize("gain", [1.0, 0.02], ids=["loud", "faint"])
@pytest.mark.parametrize("name", ["timer.flac", "code.ogg"])
def test_a_sentence_between_silences_is_a_turn(name: str, gain: float) -> None:
    sentence = recording(name, gain)
    sound = np.concatenate([silence(20), sentence, silence(10), sentence, silence(3)])
    second = 30 + len(sentence) / 16_000
    found = turns(sound, 1_600)
    assert [kind for kind, _ in found] == [Started, Stopped] * 2
    for (_, started), (_, stopped), begin in zip(found[::2], found[1::2], (20, second), strict=True):
        assert begin - 0.4 < started < begin + 0.4
        assert begin + 2.0 < stopped < begin + len(sentence) / 16_000 + 0.9


def test_messages_of_any_size_give_the_same_turns() -> None:
    sound = np.concatenate([silence(1), recording("timer.flac"), silence(2)])
    assert turns(sound, 37) == turns(sound, 1_600) == turns(sound, len(sound))


@pytest.mark.parametrize("level", [10, 300, 3_000])
def test_noise_is_no_speech(level: int) -> None:
    noise = np.random.default_rng(0).normal(scale=level, size=16_000 * 20).clip(-32_768, 32_767).astype(np.int16)
    assert turns(noise, 1_600) == []
