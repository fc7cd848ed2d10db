"""Damaged recordings: files of many containers and codecs, made from a sample, and the ways in which they break.

The same seed gives the same files.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from whispercore.audio.recording import read_samples
from whispercore.types import SAMPLE_RATE, Samples

from .work import ROOT

SAMPLES = ROOT / "samples"
SECONDS = 2.5
"""Of speech in the files. As 16-bit samples they are larger than the smallest file that the prober opens first."""
FORMATS: tuple[tuple[str, str, int], ...] = (
    *(("wav", codec, SAMPLE_RATE) for codec in ("pcm_s16le", "pcm_u8", "pcm_s24le", "pcm_f32le", "adpcm_ms", "adpcm_ima_wav")),
    *(("wav", codec, 8_000) for codec in ("pcm_alaw", "pcm_mulaw", "g726")),
    *(("w64", "pcm_s16le", SAMPLE_RATE), ("voc", "pcm_u8", SAMPLE_RATE), ("aiff", "pcm_s16be", SAMPLE_RATE)),
    *(("au", codec, SAMPLE_RATE) for codec in ("pcm_s16be", "pcm_mulaw")),
    *(("caf", codec, SAMPLE_RATE) for codec in ("pcm_s16be", "alac")),
    ("flac", "flac", SAMPLE_RATE),
    *(("ogg", codec, SAMPLE_RATE) for codec in ("flac", "libvorbis", "libopus", "libspeex")),
    *(("mp3", "libmp3lame", SAMPLE_RATE), ("adts", "aac", SAMPLE_RATE), ("latm", "aac", SAMPLE_RATE)),
    *(("ac3", "ac3", 48_000), ("eac3", "eac3", 48_000), ("amr", "libopencore_amrnb", 8_000)),
    *(("ipod", codec, SAMPLE_RATE) for codec in ("aac", "alac")),
    *(("mp4", codec, SAMPLE_RATE) for codec in ("aac", "libmp3lame")),
    *(("mov", codec, SAMPLE_RATE) for codec in ("pcm_s16le", "adpcm_ima_qt")),
    ("3gp", "aac", SAMPLE_RATE),
    *(("matroska", codec, SAMPLE_RATE) for codec in ("libopus", "libvorbis", "flac", "pcm_s16le", "wavpack", "tta")),
    *(("webm", codec, SAMPLE_RATE) for codec in ("libopus", "libvorbis")),
    *(("mpegts", codec, 48_000) for codec in ("aac", "mp2", "ac3")),
    ("mpeg", "mp2", 48_000),
    *(("avi", codec, SAMPLE_RATE) for codec in ("pcm_s16le", "libmp3lame", "adpcm_ms")),
    *(("flv", codec, 44_100) for codec in ("aac", "libmp3lame", "nellymoser")),
    *(("asf", codec, SAMPLE_RATE) for codec in ("wmav1", "wmav2")),
    *(("wv", "wavpack", SAMPLE_RATE), ("tta", "tta", SAMPLE_RATE), ("rm", "ac3", 48_000)),
    *(("nut", codec, SAMPLE_RATE) for codec in ("pcm_s16le", "libopus")),
)
"""Container, codec and sample rate."""
LARGEST = 4_000_000
"""Bytes of a damaged file, at most."""
_TAGS = {"title": "a title", "artist": "an artist", "comment": "words " * 40}
_SIZED = re.compile(rb"[A-Za-z0-9 ]{4}")
"""The name of a chunk, a box or an atom: its length stands before or after it."""
_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""From a source of chance, a file, and the other files to a damaged file."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A damaged file, and what was done to it."""

    what: str
    data: bytes


def damaged(seed: str) -> Damaged:
    """A file with one to three damages."""
    chance, files = random.Random(seed), originals()
    name = chance.choice(list(files))
    data, steps = files[name], list[str]()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        step = chance.choice(list(MUTATIONS))
        data = MUTATIONS[step](chance, data, list(files.values()))[:LARGEST]
        steps.append(step)
    return Damaged(f"{name}: {', '.join(steps)}", data)


@cache
def originals() -> dict[str, bytes]:
    """Undamaged files by name: one of each format that this build of FFmpeg can write, and the samples."""
    speech = read_samples(SAMPLES / "timer.flac")[: round(SECONDS * SAMPLE_RATE)]
    files = {name: (SAMPLES / name).read_bytes() for name in ("code.ogg", "timer.flac", "weather.mp3", "stereo.wav")}
    for container, codec, rate in FORMATS:
        try:
            files[f"{container} {codec}"] = encode(speech, container, codec, rate)
        except (av.FFmpegError, ValueError):  # not in this build
            continue
    return files


def encode(samples: Samples, container: str, codec: str, rate: int) -> bytes:
    """The samples, mono at 16 kHz, as a file with tags. Raises av.FFmpegError or ValueError where FFmpeg cannot write it."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        with av.open(str(path), "w", format=container) as output:
            output.metadata.update(_TAGS)
            stream: Any = output.add_stream(codec, rate=rate, layout="mono", options={"b": "64k"} if codec.startswith("wma") else None)
            for frame in _frames(stream, samples, rate):
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path.read_bytes()


def _frames(stream: Any, samples: Samples, rate: int) -> list[Any]:
    """The samples as frames that the stream's encoder takes."""
    stream.codec_context.open()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None, :]), format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    resampler = av.AudioResampler(stream.format, stream.layout, rate, stream.codec_context.frame_size or 1024)
    return [*resampler.resample(frame), *resampler.resample(None)]


def _place(chance: random.Random, data: bytes) -> int:
    """A position, half of the time among the first 1,000 bytes, where the headers are."""
    length = max(1, len(data))
    return chance.randrange(min(length, 1_000)) if chance.random() < 0.5 else chance.randrange(length)


def _slice(chance: random.Random, data: bytes) -> tuple[int, int]:
    begin = _place(chance, data)
    return begin, min(len(data), begin + chance.choice((1, 4, 16, 188, 1_000, 20_000)))


def _put(data: bytes, begin: int, piece: bytes) -> bytes:
    return data[:begin] + piece + data[begin + len(piece) :]


def _truncated(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: _place(chance, data)]


def _flipped_bits(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 64, 1_000))):
        if changed:
            changed[_place(chance, data)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _foreign_head(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The beginning of another file before the rest of this one."""
    length = chance.choice((4, 12, 44, 200, 1_000))
    return chance.choice(others)[:length] + data[length:]


def _spliced(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another file, or a part of it, in the middle of this one or after it."""
    other = chance.choice(others)
    begin, end = (0, len(other)) if chance.random() < 0.5 else _slice(chance, other)
    place = chance.choice((_place(chance, data), len(data)))
    return data[:place] + other[begin:end] + data[place:]


def _lengths(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A length before or after the name of a chunk is another number, in either byte order."""
    names = [match.start() for match in _SIZED.finditer(data[:4_000])]
    for _ in range(chance.choice((1, 1, 3))):
        begin = max(0, chance.choice(names) + chance.choice((-4, 4))) if names else _place(chance, data)
        data = _put(data, begin, struct.pack(chance.choice("<>") + "I", chance.choice((*_NUMBERS, chance.getrandbits(32)))))
    return data


def _numbers(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Two, four or eight bytes anywhere are an extreme number."""
    kind, bits = chance.choice((("H", 16), ("I", 32), ("Q", 64)))
    number = chance.choice((*_NUMBERS, (1 << bits) - 1, 1 << (bits - 1))) & ((1 << bits) - 1)
    return _put(data, _place(chance, data), struct.pack(chance.choice("<>") + kind, number))


def _repeated(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A piece several times in a row."""
    begin, end = _slice(chance, data)
    return data[:end] + data[begin:end] * chance.choice((1, 2, 10, 100)) + data[end:]


def _removed(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _slice(chance, data)
    return data[:begin] + data[end:]


def _moved(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    begin, end = _slice(chance, data)
    rest = data[:begin] + data[end:]
    place = _place(chance, rest)
    return rest[:place] + data[begin:end] + rest[place:]


def _overwritten(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A piece is zeros, ones or noise."""
    begin, end = _slice(chance, data)
    piece = chance.choice((bytes(end - begin), b"\xff" * (end - begin), chance.randbytes(end - begin)))
    return _put(data, begin, piece)


def _tagged(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Tags before or after the file, some of which lie about their length."""
    count = chance.choice((0, 1, 20, 3_000))
    frames = b"".join(
        chance.choice((b"TXXX", b"TIT2", b"APIC", b"PRIV")) + _synchsafe(4) + b"\0\0\3k%d" % (number % 10) + b"\0"
        for number in range(count)
    )
    size = chance.choice((len(frames), len(frames), 0, 10 * len(frames), (1 << 28) - 1))
    items = b"".join(b"I%03d" % (number % 1_000) + struct.pack("<I", 2) + b"v\0" for number in range(count))
    return chance.choice(
        (
            b"ID3" + bytes([chance.choice((2, 3, 4)), 0, chance.choice((0, 0x40, 0x80))]) + _synchsafe(size) + frames + data,
            data + b"TAG" + chance.randbytes(125),
            data + b"APETAGEX" + struct.pack("<IIII", 2_000, size & 0xFFFFFFFF, count, 0x80000000) + bytes(8) + frames,
            data[:12] + b"LIST" + struct.pack("<I", (size & 0xFFFF) + 4) + b"INFO" + items + data[12:],
        )
    )


def _synchsafe(number: int) -> bytes:
    """ID3's numbers: seven bits in each of four bytes."""
    return bytes((number >> shift) & 127 for shift in (21, 14, 7, 0))


MUTATIONS: dict[str, Mutation] = {
    "truncated": _truncated,
    "flipped bits": _flipped_bits,
    "foreign head": _foreign_head,
    "spliced": _spliced,
    "lengths": _lengths,
    "numbers": _numbers,
    "repeated": _repeated,
    "removed": _removed,
    "moved": _moved,
    "overwritten": _overwritten,
    "tagged": _tagged,
}
