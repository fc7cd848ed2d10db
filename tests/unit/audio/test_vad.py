"""The detector: the original network's numbers, a stream as one recording, no word missed, no speech in noise."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from whispercore.audio import silero
from whispercore.audio.recording import read_samples
from whispercore.audio.silero import CONTEXT, FRAME, initial_state, network
from whispercore.audio.vad import VoiceDetector
from whispercore.types import SAMPLE_RATE, Samples

SAMPLES = Path(__file__).parents[3] / "samples"
PIECE = 160 * FRAME


def detect(recording: Samples) -> Samples:
    detector = VoiceDetector()
    return np.concatenate([detector(recording[begin : begin + PIECE]) for begin in range(0, len(recording), PIECE)])


def framed(recording: Samples) -> Samples:
    """Frames with the 64 samples before each, shape (n, 576)."""
    frames = recording[: len(recording) // FRAME * FRAME].reshape(-1, FRAME)
    return np.concatenate([np.concatenate([np.zeros((1, CONTEXT), np.float32), frames[:-1, -CONTEXT:]]), frames], axis=1)


def original(frames: Samples) -> Samples:
    spec = importlib.util.find_spec("faster_whisper")
    assert spec and spec.origin
    session = onnxruntime.InferenceSession(
        str(Path(spec.origin).parent / "assets" / "silero_vad_v6.onnx"), providers=["CPUExecutionProvider"]
    )
    h, c = initial_state()
    return np.asarray(session.run(None, {"input": frames, "h": h, "c": c})[0]).reshape(-1)


@pytest.mark.parametrize("name", ["weather.mp3", "home.flac", "digits.flac"])
def test_the_network_gives_the_originals_numbers(name: str) -> None:
    frames = framed(read_samples(SAMPLES / name))
    probabilities, _ = network().probabilities(network().features(frames), initial_state())
    expected = original(frames)
    assert expected.max() > 0.9 and expected.min() < 0.1
    np.testing.assert_allclose(probabilities[:, 0], expected, atol=1e-5)


def test_memories_side_by_side_are_apart() -> None:
    features = network().features(framed(read_samples(SAMPLES / "home.flac")))
    _, after = network().probabilities(features[:40], initial_state())
    rest, _ = network().probabilities(features[40:], after)
    both = np.concatenate([after[0], initial_state()[0]], axis=1), np.concatenate([after[1], initial_state()[1]], axis=1)
    together, (h, c) = network().probabilities(features[40:], both)
    assert h.shape == c.shape == (1, 2, 128)
    np.testing.assert_allclose(together[:, 0], rest[:, 0], atol=1e-5)
    np.testing.assert_allclose(together[:, 1], network().probabilities(features[40:], initial_state())[0][:, 0], atol=1e-5)


def test_a_recording_in_pieces_is_one_stream() -> None:
    recording = read_samples(SAMPLES / "weather.mp3")[: 40 * FRAME]
    detector = VoiceDetector()
    pieces = [detector(recording[begin : begin + 20 * FRAME]) for begin in (0, 20 * FRAME)]
    assert [piece.shape for piece in pieces] == [(20,), (20,)]
    assert max(piece.max() for piece in pieces) > 0.9
    assert detector(recording[:100]).shape == (1,)


def test_digital_silence_is_no_speech_and_makes_not_deaf() -> None:
    digits = read_samples(SAMPLES / "digits.flac")
    probabilities = detect(
        np.concatenate([np.zeros(20 * PIECE, np.float32), digits, np.zeros(20 * PIECE, np.float32), digits * np.float32(0.01)])
    )
    speech = probabilities >= 0.5
    first, last = 20 * 160, 20 * 160 + len(digits) // FRAME
    again = last + 20 * 160
    assert not speech[: first - 1].any()
    assert not speech[last + 32 : again - 1].any()  # but for a second after speech
    assert speech[first:last].mean() == pytest.approx(speech[again:].mean(), abs=0.05)
    assert speech[first:last].mean() > 0.3


@pytest.mark.parametrize("level", [1.0, 0.1, 0.01])
def test_isolated_words_are_not_missed_whatever_the_pause_and_the_level(level: float) -> None:
    digits = read_samples(SAMPLES / "digits.flac") * np.float32(level)
    energy = np.convolve(digits**2, np.ones(800) / 800, mode="same")
    voiced = np.flatnonzero(energy > energy.max() * 1e-3)
    words = [word for word in np.split(voiced, np.flatnonzero(np.diff(voiced) > 0.15 * SAMPLE_RATE) + 1) if len(word) > 0.1 * SAMPLE_RATE]
    assert len(words) >= 3
    generator, recording, spans = np.random.default_rng(0), [np.zeros(0, np.float32)], []
    for word in words * 5:
        pause = np.zeros(int(np.exp(generator.uniform(np.log(0.05), np.log(8))) * SAMPLE_RATE), np.float32)
        begin = sum(map(len, recording)) + len(pause)
        recording += [pause, digits[max(0, word[0] - 800) : word[-1] + 800]]
        spans.append((begin, begin + len(recording[-1])))
    probabilities = detect(np.concatenate(recording))
    missed = [span for span in spans if probabilities[span[0] // FRAME : span[1] // FRAME + 1].max() < 0.5]
    assert not missed


def test_the_networks_are_what_the_recipe_makes_of_sileros_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the recipe needs the package onnx")
    spec = importlib.util.find_spec("faster_whisper")
    assert spec and spec.origin
    recipe = Path(__file__).parents[3] / "whisper-models" / "silero" / "prepare.py"
    source = Path(spec.origin).parent / "assets" / "silero_vad_v6.onnx"
    environment = os.environ | {"PYTHONPATH": str(recipe.parents[2] / "src")}
    subprocess.run([sys.executable, str(recipe), str(source), str(tmp_path)], check=True, env=environment)
    for name in ("encoder.onnx", "recurrent.onnx"):
        assert (tmp_path / name).read_bytes() == (Path(silero.__file__).parent / "silero_vad_v6" / name).read_bytes()
