"""Wrong levels, phases and sizes: float samples in the range of integers, cancelling channels, headers of streams."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.unit.audio.test_recording import encode, sweep
from whispercore.audio.recording import open_recording
from whispercore.types import SAMPLE_RATE, Samples

OUT_OF_PHASE = "the channels are out of phase and cancel each other when they are mixed: the louder one was taken there"


def read(data: bytes, **options: Any) -> tuple[Samples, list[str]]:
    with open_recording(data, **options) as recording:
        return np.concatenate(list(recording.blocks())), recording.warnings


def speech(seconds: float = 6.0, seed: int = 0) -> Samples:
    """Noise in syllables, quiet in between."""
    generator = np.random.default_rng(seed)
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (generator.normal(scale=0.1, size=len(t)) * (0.02 + np.maximum(0, np.sin(2 * np.pi * 3 * t)))).astype(np.float32)


# Float samples in the range of integers


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("container", ["wav", "matroska"])
def test_float_samples_in_the_range_of_integers_are_scaled(codec: str, bits: int, container: str) -> None:
    signal = sweep(2.0)
    got, warnings = read(encode(signal * np.float32(2.0 ** (bits - 1)), container, codec))
    np.testing.assert_allclose(got, signal, atol=1e-5)
    assert warnings == [f"the samples are floating point numbers in the range of {bits}-bit integers: scaled to 1.0"]


@pytest.mark.parametrize(("container", "codec"), [("aiff", "pcm_f32be"), ("caf", "pcm_f32be"), ("au", "pcm_f64be"), ("w64", "pcm_f32le")])
def test_in_every_container_and_byte_order(container: str, codec: str) -> None:
    got, warnings = read(encode(sweep(2.0) * np.float32(32768), container, codec))
    np.testing.assert_allclose(got, sweep(2.0), atol=1e-5)
    assert "16-bit" in warnings[0]


@pytest.mark.parametrize("peak", [1e-4, 0.5, 1.0, 1.2, 4.0, 12.0])
def test_a_mix_that_exceeds_full_scale_a_little_is_left_alone(peak: float) -> None:
    signal = sweep(2.0) * np.float32(peak * 2)
    got, warnings = read(encode(signal, "wav", "pcm_f32le"))
    np.testing.assert_allclose(got, signal, rtol=1e-5, atol=1e-6)
    assert warnings == []


@pytest.mark.parametrize("absurd", [1e9, 1e30, np.inf, -3e38])
def test_a_few_absurd_samples_scale_nothing_down(absurd: float) -> None:
    signal = sweep(4.0)
    for scale in (1.0, 32768.0):
        scaled = signal * np.float32(scale)
        scaled[[7, 30_000]] = absurd
        got, warnings = read(encode(scaled, "wav", "pcm_f32le"))
        expected = signal.copy()
        expected[[7, 30_000]] = 0
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert any("not finite" in warning for warning in warnings)


def test_a_long_quiet_beginning_does_not_decide() -> None:
    signal = np.concatenate([np.zeros(60 * SAMPLE_RATE, np.float32), np.tile([1.0, -1.0], 30 * SAMPLE_RATE), sweep(4.0) * 30_000])
    got, _ = read(encode(signal.astype(np.float32), "wav", "pcm_f32le"))
    assert np.abs(got).max() < 1.0 and np.abs(got[: 100 * SAMPLE_RATE]).max() < 1e-4
    channels = np.stack([sweep(3.0) * 30_000, sweep(3.0) * 20_000]).astype(np.float32)
    data = encode(channels, "wav", "pcm_f32le")
    for index, loudness in enumerate((30_000, 20_000)):  # each pass scales by the whole file, not by its channel
        np.testing.assert_allclose(read(data, channel=index)[0], sweep(3.0) * loudness / 32768, atol=1e-4)


# Channels out of phase


@pytest.mark.parametrize("second", [-1.0, -0.9, -0.7])
@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("wav", "pcm_f32le"), ("mp3", "libmp3lame")])
def test_channels_that_cancel_give_the_louder_one(second: float, container: str, codec: str) -> None:
    signal = speech()
    got, warnings = read(encode(np.stack([signal, signal * np.float32(second)]), container, codec, codec_options={"b": "192k"}))
    assert np.sqrt(np.mean(got**2)) == pytest.approx(np.sqrt(np.mean(signal**2)), rel=0.1)
    assert warnings == [OUT_OF_PHASE]


def test_noise_hum_and_direct_current_hide_no_cancelling_voice() -> None:
    voice, noise = speech(), np.random.default_rng(1).normal(scale=0.003, size=(2, 6 * SAMPLE_RATE)).astype(np.float32)
    t = np.arange(len(voice)) / SAMPLE_RATE
    hum = (0.05 + 0.1 * np.sin(2 * np.pi * 50 * t)).astype(np.float32)
    got, warnings = read(encode(np.stack([voice, -voice]) + noise + hum, "flac", "flac"))
    assert abs(np.corrcoef(got - hum, voice)[0, 1]) > 0.95
    assert warnings == [OUT_OF_PHASE]


def test_only_the_part_that_cancels_is_replaced() -> None:
    voice = speech(20.0)
    other = voice.copy()
    other[8 * SAMPLE_RATE : 12 * SAMPLE_RATE] *= -1
    got, warnings = read(encode(np.stack([voice, other]), "flac", "flac"))
    assert np.abs(got - voice).max() < 0.6
    changed = np.abs(got - voice) > 1e-4
    assert changed.mean() < 0.06  # the half seconds at the borders
    assert warnings == [OUT_OF_PHASE]


@pytest.mark.parametrize(
    "mix", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.5), (1.0, -0.3), (1e-4, 0.8e-4)], ids=lambda mix: f"{mix[0]:g} and {mix[1]:g}"
)
def test_ordinary_stereo_is_the_mean(mix: Sequence[float]) -> None:
    planes = np.stack([speech() * np.float32(part) for part in mix])
    got, warnings = read(encode(planes, "wav", "pcm_f32le"))
    np.testing.assert_allclose(got, planes.mean(axis=0), atol=1e-7)
    assert warnings == []


def test_two_speakers_a_wide_image_and_silence_are_the_mean() -> None:
    for planes in (
        np.stack([speech(seed=1), speech(seed=2)]),
        np.stack([speech(seed=1), np.roll(speech(seed=1), 9)]),
        np.zeros((2, 99_999), np.float32),
    ):
        got, warnings = read(encode(planes, "wav", "pcm_f32le"))
        np.testing.assert_allclose(got, planes.mean(axis=0), atol=1e-7)
        assert warnings == []


def test_surround_sound_that_cancels() -> None:
    voice = speech()
    layouts: list[list[Any]] = [[voice, -voice, 0, 0, 0, 0], [voice, 0, -voice, 0], [0, 0, voice, 0, -voice, 0, 0, 0]]
    for layout in layouts:
        planes = np.stack([np.broadcast_to(np.float32(0), voice.shape) if isinstance(plane, int) else plane for plane in layout])
        got, warnings = read(encode(planes, "wav", "pcm_s16le"))
        assert abs(np.corrcoef(got, voice)[0, 1]) > 0.99 and np.abs(got).max() > 0.9 * np.abs(voice).max()
        assert warnings == [OUT_OF_PHASE]
    planes = np.stack([speech(seed=seed) if seed in (0, 1, 2) else np.zeros_like(voice) for seed in range(6)])
    got, warnings = read(encode(planes, "wav", "pcm_f32le"))
    np.testing.assert_allclose(got, planes.mean(axis=0), atol=1e-6)
    assert warnings == []


def test_a_channel_asked_for_is_not_mixed() -> None:
    voice = speech()
    got, warnings = read(encode(np.stack([voice, -voice]), "wav", "pcm_f32le"), channel=1)
    np.testing.assert_allclose(got, -voice, atol=1e-6)
    assert warnings == []


# Sizes in headers


def wave(riff: int, data: int, seconds: float = 2.0) -> bytes:
    body = (sweep(seconds) * 30_000).astype("<i2").tobytes()
    header = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + header + b"data" + struct.pack("<I", data) + body


PLACEHOLDERS = [0, 0xFFFFFFFF, 0xFFFFFFF7, 0xFFFFFFDB, 0xFFFF0000, 0x7FFFFFFF, 0x7FFFFFDB, 0x7FFFF000, 0x7FFFFF00, 0x80000000, 0x80000024]


@pytest.mark.parametrize("size", PLACEHOLDERS, ids=hex)
def test_the_sizes_that_streams_leave_in_a_wav_header_tell_nothing(size: int) -> None:
    for data in (wave(size, size), wave(size, 64_000), wave(64_036, size), wave((size + 36) & 0xFFFFFFFF, size)):
        samples, warnings = read(data)
        assert len(samples) == 2 * SAMPLE_RATE and warnings == []


def test_a_wav_that_lacks_its_end_is_told() -> None:
    assert read(wave(128_036, 128_000))[1] == ["the file is truncated: 2.0 s of 4.0 s"]
    assert "the file is truncated: 2.0 s of 9" in read(wave(300_000_036, 300_000_000))[1][0]


@pytest.mark.parametrize("container", ["w64", "aiff", "au"])
def test_other_headers(container: str) -> None:
    codec = "pcm_s16le" if container == "w64" else "pcm_s16be"
    data = bytearray(encode(sweep(4.0), container, codec))
    assert read(bytes(data))[1] == []
    assert any("truncated" in warning for warning in read(bytes(data[: len(data) // 2]))[1])
    if container == "w64":  # has no size that means none
        return
    at = {"aiff": data.find(b"SSND") + 4, "au": 8}[container]
    for begin in (at, 4) if container == "aiff" else (at,):
        data[begin : begin + 4] = b"\xff" * 4
    samples, warnings = read(bytes(data))
    assert len(samples) >= 4 * SAMPLE_RATE - 4 and warnings == []


def test_caf_of_unknown_size() -> None:
    data = bytearray(encode(sweep(4.0), "caf", "pcm_s16be"))
    at = data.find(b"data") + 4
    data[at : at + 8] = b"\xff" * 8
    samples, warnings = read(bytes(data))
    assert len(samples) >= 4 * SAMPLE_RATE - 4 and warnings == []
