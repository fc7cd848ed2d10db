"""Files that make FFmpeg slow: refused, or read without what makes it slow, within seconds of processor time."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.audio.test_recording import encode
from whispercore.audio import budget, open_recording, probing, read_samples
from whispercore.audio.probing import Prober
from whispercore.audio.tags import MAX_COMMENTS
from whispercore.errors import Cancelled, UnreadableAudio

SAMPLES = Path(__file__).parents[3] / "samples"
MP3, FLAC = (SAMPLES / "weather.mp3").read_bytes(), (SAMPLES / "timer.flac").read_bytes()


def synchsafe(number: int) -> bytes:
    return bytes((number >> shift) & 127 for shift in (21, 14, 7, 0))


def id3(count: int) -> bytes:
    frames = [b"\3k%d\0v" % number for number in range(count)]
    body = b"".join(b"TXXX" + synchsafe(len(frame)) + b"\0\0" + frame for frame in frames)
    return b"ID3\x04\0\0" + synchsafe(len(body)) + body


def vorbis_comments(count: int) -> bytes:
    comments = (b"k%d=v" % number for number in range(count))
    return struct.pack("<I", 1) + b"x" + struct.pack("<I", count) + b"".join(struct.pack("<I", len(text)) + text for text in comments)


def flac(count: int) -> bytes:
    """The sample with a second comment block, after its stream info."""
    end = 8 + int.from_bytes(FLAC[5:8], "big")
    block = vorbis_comments(count)
    return FLAC[:end] + b"\x04" + len(block).to_bytes(3, "big") + block + FLAC[end:]


def ogg(count: int, name: bytes = b"OpusTags", *, pages: int | None = None) -> bytes:
    """A stream whose comment packet reaches over many pages; no sound. `pages`: cut off after so many."""

    def page(flags: int, number: int, lacing: list[int], data: bytes) -> bytes:
        head = struct.pack("<4sBBqIII", b"OggS", 0, flags, 0, 7, number, 0)
        return head + bytes([len(lacing)]) + bytes(lacing) + data

    first = b"OpusHead" + bytes([1, 1, 0, 0]) + struct.pack("<I", 48_000) + b"\0\0\0"
    made, rest = [page(2, 0, [len(first)], first)], name + vorbis_comments(count)
    while rest is not None:
        piece, more = rest[: 255 * 255], rest[255 * 255 :]
        lacing = [255] * (len(piece) // 255) + ([len(piece) % 255] if len(piece) < 255 * 255 else [])
        made.append(page(int(len(made) > 1), len(made), lacing, piece))
        if len(piece) < 255 * 255:
            break
        rest = more
    return b"".join(made[:pages])


def noise(container: str, codec: str) -> bytes:
    """A second of noise as a file."""
    return encode(0.03 * np.random.default_rng(0).normal(size=16_000).astype(np.float32), container, codec)


def element(identifier: str, content: bytes) -> bytes:
    """An EBML element with a size of eight bytes."""
    return bytes.fromhex(identifier) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def matroska(count: int) -> bytes:
    """Sound of one second in a segment of unknown size that begins with so many tags."""
    plain, segment = noise("matroska", "pcm_s16le"), bytes.fromhex("18538067")
    begin = plain.index(segment)
    size = 9 - plain[begin + 4].bit_length()
    names = (element("67C8", element("45A3", b"k%d" % number) + element("4487", b"v")) for number in range(count))
    tags = element("1254C367", element("7373", element("63C0", b"") + b"".join(names)))
    return plain[:begin] + segment + b"\x01" + b"\xff" * 7 + tags + plain[begin + 4 + size :]


def wav(count: int) -> bytes:
    """Sound of one second after a list of so many tags."""
    plain = noise("wav", "pcm_s16le")
    items = b"".join(b"%04x" % (number & 0xFFFF) + struct.pack("<I", 2) + b"v\0" for number in range(count))
    tags = b"LIST" + struct.pack("<I", len(items) + 4) + b"INFO" + items
    return plain[:4] + struct.pack("<I", len(plain) - 8 + len(tags)) + plain[8:12] + tags + plain[12:]


def spent(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


@pytest.mark.parametrize("tag", [id3(100_000), id3(3) + id3(50_000), id3(0)], ids=["100,000 tags", "two tags", "an empty tag"])
def test_an_id3_tag_costs_nothing(tag: bytes) -> None:
    samples = read_samples(MP3)
    assert spent(lambda: np.testing.assert_array_equal(read_samples(tag + MP3), samples)) < 1.0


def test_a_file_that_is_all_tag_is_no_audio() -> None:
    with pytest.raises((UnreadableAudio, Exception), match=r"audio|broken"):
        read_samples(id3(100))


def test_flac_and_ogg_with_some_tags_are_read() -> None:
    np.testing.assert_array_equal(read_samples(flac(1_000)), read_samples(FLAC))
    opus = noise("ogg", "flac")
    assert len(read_samples(opus)) > 15_000


@pytest.mark.parametrize(
    "file",
    [
        flac(MAX_COMMENTS + 1),
        flac(500_000),
        ogg(200_000),
        ogg(200_000, pages=3),
        ogg(200_000, b"\x03vorbis"),
        ogg(200_000, b""),
        ogg(200_000, b"\x04\0\0\0"),
        id3(10) + flac(20_000),
    ],
    ids=["flac", "large flac", "opus", "opus, cut off", "vorbis", "speex", "flac in ogg", "flac after id3"],
)
def test_too_many_tags_are_refused(file: bytes) -> None:
    def refused() -> None:
        with pytest.raises(UnreadableAudio, match=r"more than 5000 tags: remove them"):
            open_recording(file)

    assert spent(refused) < 1.0


@pytest.mark.parametrize("file", [b"#!AMR\n" + b"\x7c" * 3_000_000], ids=["amr without sound"])
def test_packets_without_sound_are_given_up(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "FIXED_SECONDS", 0.5)

    def refused() -> None:
        with open_recording(file) as recording, pytest.raises(UnreadableAudio, match=r"processor time for 0.0 s of sound"):
            list(recording.blocks())

    assert spent(refused) < 2.5


def test_reading_ends_when_nothing_waits_for_it() -> None:
    gone = False
    with open_recording(b"#!AMR\n" + b"\x7c" * 3_000_000, is_cancelled=lambda: gone) as recording:
        gone = True
        with pytest.raises(Cancelled):
            list(recording.blocks())
    with pytest.raises(Cancelled):
        open_recording(MP3, is_cancelled=lambda: True)


@pytest.fixture
def prober() -> Prober:
    return Prober(processes=1, seconds=1)


@pytest.mark.parametrize("file", [matroska(60_000), wav(65_000)], ids=["matroska", "wav"])
def test_opening_that_takes_too_long_is_ended(file: bytes, prober: Prober) -> None:
    with pytest.raises(UnreadableAudio, match=r"opening the file takes more than 1 s"):
        prober.check(file)
    prober.check(MP3 * 4)  # and the next one is opened by a new process
    prober.close()


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the other process does with a file that begins with POISON: statements with the names `os` and `signal`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def poison(deed: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            f"import os, signal, sys, time\nsys.path.insert(0, {str(SAMPLES.parent / 'src')!r})\n"
            "import whispercore.audio.recording as recording\nplain = recording.open_recording\n"
            f"def opened(file):\n    file.seek(0)\n    if file.read(6) == b'POISON':\n        {deed}\n    return plain(file)\n"
            "recording.open_recording = opened\n"
        )

    return poison


POISON = b"POISON" + bytes(100_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "makes FFmpeg crash"),
        ("os.abort()", "makes FFmpeg crash"),
        ("while True: pass", "more than 1 s of processor time"),
        ("time.sleep(600)", "more than 1 s of processor time"),
        ("bytearray(64 << 30)", "more memory than is allowed"),
    ],
)
def test_a_file_that_ends_or_hangs_the_other_process_is_refused(
    deed: str, reason: str, poisoned: Callable[[str], None], prober: Prober, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "WAIT_SECONDS", 5.0)
    poisoned(deed)
    with pytest.raises(UnreadableAudio, match=reason):
        prober.check(POISON)
    prober.check(MP3 * 4)
    prober.close()


@pytest.mark.slow
def test_a_file_is_tried_again_when_the_other_process_is_killed_from_outside(
    poisoned: Callable[[str], None], prober: Prober, tmp_path: Path
) -> None:
    first = tmp_path / "tried"
    poisoned(f"open({str(first)!r}, 'x').close(); os.kill(os.getpid(), signal.SIGKILL)")
    prober.check(POISON)  # the second attempt fails as no audio, which is found again when the file is read
    assert first.exists()
    first.unlink()
    poisoned("os.kill(os.getpid(), signal.SIGKILL)")
    prober.close()
    again = Prober(processes=1, seconds=1)
    with pytest.raises(UnreadableAudio, match="makes FFmpeg crash"):
        again.check(POISON)
    again.close()


def test_where_no_process_can_be_started_files_are_not_tried(
    prober: Prober, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    prober.start()
    prober.check(MP3 * 4)
    prober.check(MP3 * 4)
    assert caplog.text.count("are not opened in another process first") == 1
    prober.close()


@pytest.mark.slow
def test_when_no_process_can_be_started_for_a_while_later_files_are_tried_again(prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    prober.check(MP3 * 4)
    process = prober._idle.get()
    process.kill()
    prober._idle.put(process)
    with monkeypatch.context() as shortage:
        shortage.setattr("sys.executable", "/bin/false")
        prober.check(matroska(60_000))  # not tried
    with pytest.raises(UnreadableAudio, match="opening the file takes more"):
        prober.check(matroska(60_000))
    prober.close()


def test_without_memory_files_a_file_is_not_tried(prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError("not here")

    monkeypatch.setattr("os.memfd_create", refuse)
    prober.check(MP3 * 4)
    prober.close()


def test_other_files_pass(prober: Prober, tmp_path: Path) -> None:
    (tmp_path / "long.mp3").write_bytes(MP3 * 4)
    for source in (MP3 * 4, bytearray(MP3 * 4), memoryview(MP3 * 4), b"no audio" * 20_000, tmp_path / "long.mp3", tmp_path / "none", b""):
        prober.check(source)
    prober.check(io.BytesIO(matroska(60_000)))  # the caller's own file is not tried
    prober.close()
    prober.close()
    prober.check(matroska(60_000))  # nor anything after the end
