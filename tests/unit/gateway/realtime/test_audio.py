"""Bytes of each format → samples at 16 kHz."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from gateway.realtime.audio import FORMATS, AudioBuffer, Decoder, Pcm


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate) * 12_000).astype("<i2")


def decoded(name: str, pieces: list[bytes]) -> Pcm:
    decoder = Decoder(name)
    return np.concatenate([*(decoder.decode(piece) for piece in pieces), decoder.flush()])


@pytest.mark.parametrize(("name", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711_tables_are_those_of_libsndfile(name: str, subtype: str) -> None:
    codes = bytes(range(256))
    samples, _ = soundfile.read(io.BytesIO(codes), dtype="int16", channels=1, samplerate=8000, format="RAW", subtype=subtype)
    assert FORMATS[name].table.tolist() == samples.tolist()


@pytest.mark.parametrize("size", [1, 7, 960, 9_601])
def test_pieces_of_any_length_give_the_same_samples(size: int) -> None:
    data = tone(24_000).tobytes()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    np.testing.assert_allclose(decoded("audio/pcm", pieces), decoded("audio/pcm", [data]), atol=1)


@pytest.mark.parametrize("name", FORMATS)
def test_the_duration_and_the_pitch_are_kept(name: str) -> None:
    rate = FORMATS[name].rate
    if FORMATS[name].table is None:
        data = tone(rate).tobytes()
    else:
        file = io.BytesIO()
        soundfile.write(file, tone(rate), rate, format="RAW", subtype="ULAW" if name == "audio/pcmu" else "ALAW")
        data = file.getvalue()
    samples = decoded(name, [data])
    assert len(samples) == pytest.approx(8_000, abs=2)
    expected = tone(16_000)[200:7_800].astype(float)
    assert np.abs(samples[200:7_800] - expected).max() < 700  # A-law's steps at this level are 512 wide


def test_half_a_sample_waits_for_its_other_half() -> None:
    decoder = Decoder("audio/pcm")
    data = tone(24_000).tobytes()
    first = decoder.decode(data[:1])
    assert len(first) == 0
    assert len(decoder.decode(data[1:])) > 7_000


def test_the_decoder_begins_anew_after_a_flush() -> None:
    decoder = Decoder("audio/pcm")
    data = tone(24_000).tobytes()
    first = [decoder.decode(data + b"x"), decoder.flush()]
    second = [decoder.decode(data), decoder.flush()]
    np.testing.assert_allclose(np.concatenate(first), np.concatenate(second), atol=1)


def test_the_buffer_keeps_positions_when_it_forgets() -> None:
    buffer = AudioBuffer()
    buffer.append(np.arange(100, dtype=np.int16))
    buffer.forget(40)
    buffer.append(np.arange(100, 120, dtype=np.int16))
    assert (buffer.start, buffer.end) == (40, 120)
    assert np.frombuffer(buffer.between(90, 110), np.int16).tolist() == list(range(90, 110))
    assert np.frombuffer(buffer.between(0, 45), np.int16).tolist() == list(range(40, 45))
    buffer.forget(10)
    assert buffer.start == 40
    buffer.forget(500)
    assert (buffer.start, buffer.end) == (120, 120)
