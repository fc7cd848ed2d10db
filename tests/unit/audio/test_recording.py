"""Containers, codecs and sample formats in; mono float32 at 16 kHz out. Every file is made here, with PyAV."""

from __future__ import annotations

import io
import math
import os
import random
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import librosa
import numpy as np
import pytest

from whispercore.audio import recording
from whispercore.audio.recording import open_recording, read_samples
from whispercore.audio.threads import AudioThreads
from whispercore.errors import InvalidRequest, TooLarge, UnreadableAudio, UnsupportedAudio, WhisperError
from whispercore.types import SAMPLE_RATE, Samples

LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def sweep(seconds: float = 4.0, rate: int = SAMPLE_RATE) -> Samples:
    """A rising tone whose loudness beats: every moment differs from every other."""
    t = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * t + 150 * t * t)) * (0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * t))).astype(np.float32)


def mux(output: Any, stream: Any, planes: Samples, rate: int = SAMPLE_RATE) -> None:
    """Write a signal, shape (channels, n), to a stream of an open container, to its end."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes.T.reshape(1, -1)), format="flt", layout=LAYOUTS[len(planes)])
    frame.sample_rate = rate
    resampler = av.AudioResampler(stream.format, stream.layout, rate, stream.frame_size or 1024)
    written = 0
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        piece.pts, piece.time_base, written = written, Fraction(1, rate), written + piece.samples
        output.mux(stream.encode(piece))
    output.mux(stream.encode(None))


def encode(
    signal: Samples,
    container: str,
    codec: str,
    rate: int = SAMPLE_RATE,
    options: dict[str, str] | None = None,
    picture: str = "",
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """`signal`, shape (n,) or (channels, n), as a file."""
    planes = np.atleast_2d(signal)
    with TemporaryDirectory() as folder, av.open(f"{folder}/file", "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate, layout=LAYOUTS[len(planes)], options=codec_options or {"b": "64k"})
        if picture:
            video = output.add_stream(picture, rate=5, width=32, height=32, pix_fmt="yuvj420p" if picture == "mjpeg" else "yuv420p")
            for index in range(5):
                image = av.VideoFrame(32, 32, video.pix_fmt)
                image.pts = index
                output.mux(video.encode(image))
        mux(output, stream, planes, rate)
        if picture:
            output.mux(video.encode(None))
        output.close()
        return Path(folder, "file").read_bytes()


def wav(signal: Samples, codec: str = "pcm_s16le", rate: int = SAMPLE_RATE) -> bytes:
    return encode(signal, "wav", codec, rate)


def warnings_of(data: bytes) -> tuple[float, list[str]]:
    with open_recording(data) as recording:
        for _ in recording.blocks():
            pass
        return recording.duration, recording.warnings


def lag_and_error(got: Samples, expected: Samples) -> tuple[int, float]:
    """The shift in samples at which both agree best, and the relative error there."""
    spectrum = np.fft.rfft(got, 2 * len(expected)) * np.conj(np.fft.rfft(expected, 2 * len(expected)))
    correlation = np.fft.irfft(spectrum)
    lag = int(correlation.argmax())
    lag -= len(correlation) if lag > len(expected) else 0
    shifted = np.roll(got, -lag)[1000 : min(len(got), len(expected)) - 1000]
    reference = expected[1000 : 1000 + len(shifted)]
    return lag, float(np.linalg.norm(shifted - reference) / np.linalg.norm(reference))


LOSSLESS = [
    ("wav", "pcm_u8", 0.05),
    ("wav", "pcm_s16le", 1e-4),
    ("wav", "pcm_s24le", 1e-6),
    ("wav", "pcm_s32le", 1e-6),
    ("wav", "pcm_f32le", 1e-6),
    ("wav", "pcm_f64le", 1e-6),
    ("wav", "pcm_mulaw", 0.03),
    ("wav", "pcm_alaw", 0.03),
    ("w64", "pcm_s16le", 1e-4),
    ("aiff", "pcm_s16be", 1e-4),
    ("au", "pcm_s16be", 1e-4),
    ("caf", "pcm_s16be", 1e-4),
    ("wav", "pcm_s64le", 1e-6),
    ("flac", "flac", 1e-4),
    ("ipod", "alac", 1e-4),
]


@pytest.mark.parametrize(("container", "codec", "tolerance"), LOSSLESS)
def test_a_lossless_file_gives_its_samples(container: str, codec: str, tolerance: float) -> None:
    signal = sweep(1.0)
    got = read_samples(encode(signal, container, codec))
    assert got.dtype == np.float32
    assert len(got) == len(signal)
    assert np.linalg.norm(got - signal) / np.linalg.norm(signal) < tolerance


LOSSY = [
    ("mp3", "libmp3lame", 44_100, 0.1),
    ("ogg", "libvorbis", 44_100, 0.1),
    ("ogg", "libopus", 48_000, 0.2),
    ("webm", "libopus", 48_000, 0.2),
    ("webm", "libvorbis", 44_100, 0.1),
    ("mp4", "aac", 44_100, 0.25),
    ("ipod", "aac", 16_000, 0.1),
    ("adts", "aac", 44_100, 0.25),
    ("amr", "libopencore_amrnb", 8_000, 0.6),
    ("asf", "wmav2", 44_100, 0.1),
    ("avi", "libmp3lame", 44_100, 0.1),
    ("mpegts", "aac", 44_100, 0.25),
    ("flv", "aac", 44_100, 0.25),
    ("3gp", "aac", 8_000, 0.1),
]


@pytest.mark.parametrize(("container", "codec", "rate", "tolerance"), LOSSY)
def test_a_lossy_file_sounds_the_same_at_the_same_time(container: str, codec: str, rate: int, tolerance: float) -> None:
    signal = sweep(4.0, rate)
    got = read_samples(encode(signal, container, codec, rate))
    lag, error = lag_and_error(got, read_samples(wav(signal, "pcm_f32le", rate)))
    assert abs(len(got) - 4 * SAMPLE_RATE) < 0.2 * SAMPLE_RATE
    assert abs(lag) < 0.11 * SAMPLE_RATE  # raw aac and amr keep the encoder's delay
    assert error < tolerance


@pytest.mark.parametrize("picture", ["mjpeg", "mpeg4"])
def test_only_the_sound_of_a_video_is_read(picture: str) -> None:
    got = read_samples(encode(sweep(), "matroska", "flac", picture=picture))
    np.testing.assert_allclose(got, sweep(), atol=1e-4)


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {}, {"movflags": "frag_keyframe+empty_moov"}])
def test_an_m4a_has_its_index_at_the_front_the_end_or_in_fragments(options: dict[str, str]) -> None:
    data = encode(sweep(), "mp4", "aac", 16_000, options)
    assert (data.index(b"moov") < data.index(b"mdat")) == bool(options)
    lag, error = lag_and_error(read_samples(data), sweep())
    assert lag == (1024 if "frag" in str(options) else 0)  # without an edit list the encoder's delay stays
    assert error < 0.1


@pytest.mark.parametrize("channels", LAYOUTS)
@pytest.mark.parametrize(("container", "codec", "tolerance"), [("wav", "pcm_f32le", 1e-6), ("matroska", "aac", 0.05)])
def test_any_number_of_channels_is_mixed_to_their_mean(channels: int, container: str, codec: str, tolerance: float) -> None:
    """Eight planar channels (7.1 aac) are more than PyAV's own arrays bear."""
    planes = np.stack([np.roll(sweep(2.0), 900 * index) * 0.3 for index in range(channels)])
    got = read_samples(encode(planes, container, codec, codec_options={"b": "900k"} if codec == "aac" else None))
    if codec == "pcm_f32le":
        np.testing.assert_allclose(got, planes.mean(axis=0), atol=tolerance)
    elif channels in (1, 2):  # the others have a low-frequency channel, which aac cuts
        assert lag_and_error(got, planes.mean(axis=0))[1] < tolerance, channels
    assert len(got) >= 2 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_resampling_agrees_with_librosa(rate: int) -> None:
    """At every sample within 1e-5 of full scale, -100 dB."""
    signal = np.random.default_rng(0).normal(scale=0.1, size=int(6.3 * rate)).astype(np.float32)
    expected = librosa.resample(signal, orig_sr=rate, target_sr=SAMPLE_RATE)
    got = read_samples(wav(signal, "pcm_f32le", rate))
    assert abs(len(got) - len(expected)) <= 1
    np.testing.assert_allclose(got[: len(expected)], expected[: len(got)], atol=1e-5)


@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("matroska", "pcm_f32le"), ("mp4", "aac")])
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_one_channel_alone(container: str, codec: str, channels: int) -> None:
    planes = np.stack([np.roll(sweep(2.0), 4000 * index) * 0.5 for index in range(channels)])
    data = encode(planes, container, codec, codec_options={"b": "900k"})
    with open_recording(data) as recording:
        assert recording.channels == channels
    for index in range(channels):
        with open_recording(data, channel=index) as recording:
            got = np.concatenate(list(recording.blocks()))
        if codec == "aac":
            others = [float(np.corrcoef(got[: len(plane)], plane)[0, 1]) for plane in planes]
            assert others[index] > 0.98 or (channels > 2 and index == 3)  # the low-frequency channel
        else:
            np.testing.assert_allclose(got, planes[index], atol=1e-4)


@pytest.mark.parametrize("channel", [-1, 2, 99])
def test_a_channel_that_is_not_there_is_refused(channel: int) -> None:
    with pytest.raises(InvalidRequest, match="it has 2"):
        open_recording(wav(np.stack([sweep(1.0)] * 2)), channel=channel)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path"])
def test_a_source_is_read_twice_at_once(kind: str, tmp_path: Path) -> None:
    data = encode(np.stack([sweep(12.0), -sweep(12.0)]), "flac", "flac")
    (tmp_path / "file").write_bytes(data)
    source = {"bytes": data, "bytearray": bytearray(data), "memoryview": memoryview(data), "path": tmp_path / "file"}[kind]
    with open_recording(source, channel=0) as left, open_recording(source, channel=1) as right:
        both = [(first, second) for first, second in zip(left.blocks(), right.blocks(), strict=True)]
    assert len(both) == 3
    for first, second in both:
        np.testing.assert_array_equal(first, -second)
    assert len(read_samples(source)) == 12 * SAMPLE_RATE


def test_a_recording_may_be_left_and_closed_while_it_is_decoded() -> None:
    """The container is freed only after the decoding thread has finished; otherwise this test would crash pytest."""
    music = encode(np.stack([sweep(30.0, 44_100)] * 2), "mp3", "libmp3lame", 44_100)
    threads = AudioThreads(2)
    for _ in range(20):
        with open_recording(music, threads=threads) as recording:
            assert len(next(recording.blocks()))
        recording.close()
    threads.close()


def test_decoding_ahead_changes_no_sample() -> None:
    music = encode(np.stack([sweep(12.0, 44_100)] * 2), "mp3", "libmp3lame", 44_100)
    threads = AudioThreads(2)
    with open_recording(music, threads=threads) as recording:
        samples = np.concatenate(list(recording.blocks()))
    threads.close()
    np.testing.assert_array_equal(samples, read_samples(music))


def test_a_sample_rate_that_changes_in_mid_stream_is_followed() -> None:
    first, second = encode(sweep(2.0, 44_100), "adts", "aac", 44_100), encode(sweep(2.0, 22_050), "adts", "aac", 22_050)
    assert len(read_samples(first + second)) == pytest.approx(4 * SAMPLE_RATE, rel=0.05)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path", "str", "file"])
def test_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    data = wav(sweep(1.0))
    path = tmp_path / "concat:odd name.mp3"
    path.write_bytes(data)
    sources = {"bytes": data, "bytearray": bytearray(data), "memoryview": memoryview(data), "path": path, "str": str(path)}
    with path.open("rb") as file:
        assert len(read_samples(sources.get(kind, file))) == SAMPLE_RATE
        assert not file.closed


def test_the_header_is_told() -> None:
    with open_recording(encode(np.stack([sweep(), sweep()]), "flac", "flac", 16_000)) as recording:
        assert (recording.codec, recording.container, recording.channels, recording.sample_rate) == ("flac", "flac", 2, 16_000)
        assert recording.declared_duration == pytest.approx(4.0)
        assert recording.duration == 0.0
        lengths = [len(block) for block in recording.blocks()]
    assert recording.duration == sum(lengths) / SAMPLE_RATE == 4.0
    assert recording.warnings == []


CUT = [
    (wav(sweep(8.0)), 0.02),
    (wav(sweep(8.0), "pcm_f32le"), 0.02),
    (encode(sweep(8.0), "flac", "flac"), 0.25),
    (encode(sweep(8.0), "mp3", "libmp3lame"), 0.15),
    (encode(sweep(8.0), "mp4", "aac", options={"movflags": "faststart"}), 0.15),
    (encode(sweep(8.0, 48_000), "webm", "libopus", 48_000), 0.25),
    (encode(sweep(8.0, 48_000), "ogg", "libopus", 48_000), 0.2),
    (encode(sweep(8.0), "adts", "aac"), 0.15),
]


@pytest.mark.parametrize(("data", "tolerance"), CUT, ids=["wav", "float wav", "flac", "mp3", "m4a", "webm", "ogg", "aac"])
def test_a_truncated_file_gives_what_it_holds_and_a_warning(data: bytes, tolerance: float) -> None:
    whole, warnings = warnings_of(data)
    assert whole == pytest.approx(8.0, abs=0.1)
    assert warnings == []
    duration, warnings = warnings_of(data[: len(data) // 2 + 1])
    assert 8.0 * (0.5 - tolerance) < duration < 8.0 * (0.5 + tolerance)
    assert warnings


def test_the_warning_tells_how_much_is_missing() -> None:
    assert warnings_of(wav(sweep(8.0))[:128_044])[1] == ["the file is truncated: 4.0 s of 8.0 s"]


def test_a_file_cut_before_its_index_says_so() -> None:
    with pytest.raises(UnreadableAudio, match="cut off before its index"):
        open_recording(encode(sweep(), "mp4", "aac")[:20_000])


def test_a_wav_of_unknown_length_is_whole() -> None:
    data = bytearray(wav(sweep()))
    data[4:8] = data[data.index(b"data") + 4 : data.index(b"data") + 8] = b"\xff\xff\xff\xff"
    assert warnings_of(bytes(data)) == (4.0, [])


def test_corrupt_packets_in_the_middle_are_skipped() -> None:
    data = bytearray(encode(sweep(20.0), "flac", "flac"))
    data[len(data) // 2 : len(data) // 2 + 3000] = random.Random(0).randbytes(3000)
    duration, warnings = warnings_of(bytes(data))
    assert 18 < duration <= 20
    assert any("corrupt packets skipped" in warning for warning in warnings)


def test_samples_that_are_no_numbers_become_silence() -> None:
    signal = sweep(1.0)
    signal[[10, 5000, 9000]] = [math.nan, math.inf, -3e38]
    with open_recording(wav(signal, "pcm_f32le")) as recording:
        got = np.concatenate(list(recording.blocks()))
    signal[[10, 5000, 9000]] = 0
    np.testing.assert_allclose(got, signal, atol=1e-6)
    assert recording.warnings == ["some samples are not finite numbers: taken as silence"]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnsupportedAudio),
        (b"hello, this is no audio at all\n" * 100, UnsupportedAudio),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), UnsupportedAudio),
        (bytes(10_000), UnsupportedAudio),
        (wav(sweep())[:44], UnreadableAudio),
        (wav(sweep())[:74] + bytes(4), UnreadableAudio),
        (b"fLaC" + bytes(200), UnreadableAudio),
    ],
    ids=["empty", "text", "png", "zeros", "header only", "zero seconds", "broken flac"],
)
def test_what_is_no_audio_is_told_from_audio_that_is_broken(data: bytes, error: type[WhisperError]) -> None:
    with pytest.raises(error):
        read_samples(data)


def test_a_video_without_sound_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    with pytest.raises(UnsupportedAudio, match="no audio stream"):
        open_recording(file.getvalue())


@pytest.mark.parametrize(
    "playlist", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{}'\n"]
)
def test_a_playlist_opens_no_other_file(playlist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "secret.wav"
    target.write_bytes(wav(sweep()))
    body = playlist.format(target).encode()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedAudio):
        open_recording(body)
    (tmp_path / "list.m3u8").write_bytes(body)
    with pytest.raises(UnsupportedAudio):
        open_recording(tmp_path / "list.m3u8")
    monkeypatch.setattr(recording, "CONTAINERS", recording.CONTAINERS + ",hls,concat")  # the second wall: nothing but the upload is opened
    with pytest.raises(WhisperError):
        read_samples(body)


def test_a_recording_declared_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooLarge):
        open_recording(wav(sweep(4.0)), max_seconds=3.9)
    assert len(read_samples(wav(sweep(4.0)), max_seconds=4.0)) == 64_000


def test_a_recording_that_proves_too_long_is_stopped() -> None:
    silence = encode(np.zeros(SAMPLE_RATE * 120, np.float32), "adts", "aac")  # no duration in its header, 2 bytes a second
    with open_recording(silence, max_seconds=60) as recording, pytest.raises(TooLarge):
        for _ in recording.blocks():
            assert recording.duration <= 60


def test_a_custom_channel_order_does_not_end_the_process() -> None:
    """PyAV 17.1 and 18 free such a layout twice (PyAV pull request 2284): this test would crash pytest."""
    head = struct.pack(">4sHH4sq", b"caff", 1, 0, b"desc", 32) + struct.pack(">d4s5I", 16_000.0, b"lpcm", 0, 4, 1, 2, 16)
    right_left = struct.pack(">III", 0, 0, 2) + b"".join(struct.pack(">II3f", label, 0, 0.0, 0.0, 0.0) for label in (2, 1))
    sound = struct.pack(">I", 0) + struct.pack(">hh", 8192, -4096) * 16_000
    chunks = [struct.pack(">4sq", name, len(body)) + body for name, body in ((b"chan", right_left), (b"data", sound))]
    for _ in range(5):
        np.testing.assert_allclose(read_samples(head + b"".join(chunks)), np.full(16_000, 2048 / 32768), atol=1e-6)


def test_no_input_crashes_or_hangs() -> None:
    generator = random.Random(0)
    files = [data for data, _ in CUT] + [encode(sweep(), "asf", "wmav2"), encode(np.stack([sweep()] * 8), "mp4", "aac")]
    for turn in range(200):
        data = bytearray(generator.choice(files)[: generator.randrange(1, 40_000)])
        for _ in range(generator.choice([0, 1, 10, 100])):
            data[generator.randrange(min(len(data), generator.choice([100, 100_000])))] = generator.randrange(256)
        if turn % 10 == 0:
            data[12:] = generator.randbytes(len(data))
        try:
            assert np.isfinite(read_samples(data, max_seconds=30)).all()
        except WhisperError:
            continue


def test_a_long_recording_is_never_held_decoded() -> None:
    minute = wav(sweep(60.0), "pcm_u8")
    data = minute[:4] + b"\xff" * 4 + minute[8:74] + b"\xff" * 4 + minute[78 : 78 + 60 * SAMPLE_RATE] * 10
    tracemalloc.start()
    with open_recording(data) as recording:
        longest = max(len(block) for block in recording.blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recording.duration == 600
    assert longest <= 6 * SAMPLE_RATE
    assert peak < 4 * 2**20  # ten minutes decoded are 38 MB


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Path("no-such.wav"), "no-such.wav cannot be opened: No such file"),
        (str(Path(__file__).parent), "cannot be opened: Is a directory"),
        (np.zeros(16_000, np.float32), "bytes, a path or a binary file; got ndarray"),
        (io.StringIO("sound"), "bytes, a path or a binary file; got StringIO"),
    ],
)
def test_what_is_no_recording_is_told(source: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_recording(source, max_seconds=60)


def test_a_path_is_closed_once(tmp_path: Path) -> None:
    path = tmp_path / "sweep.wav"
    path.write_bytes(wav(sweep(1.0)))
    recording = open_recording(path)
    (descriptor,) = recording._file.descriptors
    recording.close()
    with path.open("rb") as other:
        os.dup2(other.fileno(), descriptor)  # as another thread may get this number
    recording.close()
    assert os.fstat(descriptor).st_size == path.stat().st_size
    os.close(descriptor)
