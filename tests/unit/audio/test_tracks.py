"""Files with several sound tracks: which one is read, how a request chooses it, and what the reply reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import pytest

from tests.unit.audio.test_recording import encode, mux, sweep
from whispercore.api.reply import render
from whispercore.api.values import read_options
from whispercore.audio.recording import open_recording
from whispercore.engines.fake import FakeEngine
from whispercore.errors import InvalidRequest
from whispercore.options import Options, Reply
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, AudioTrack

Track = tuple[float, str | None, str | None]
"""The tone's frequency, the language, the title."""
THREE: Sequence[Track] = [(300.0, "ger", None), (600.0, "eng", "Commentary"), (900.0, None, None)]


def film(tracks: Sequence[Track], container: str = "matroska", codec: str = "pcm_s16le") -> bytes:
    """Two seconds of a tone on each track."""
    with TemporaryDirectory() as folder, av.open(f"{folder}/file", "w", format=container) as output:
        streams = []
        for _, language, title in tracks:
            stream = output.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
            stream.metadata.update({name: value for name, value in (("language", language), ("title", title)) if value})
            streams.append(stream)
        for stream, (frequency, _, _) in zip(streams, tracks, strict=True):
            tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE)
            mux(output, stream, tone[None].astype(np.float32))
        output.close()
        return Path(folder, "file").read_bytes()


def pitch(data: bytes, track: str | None) -> tuple[float, list[str]]:
    with open_recording(data, track=track) as recording:
        samples = np.concatenate(list(recording.blocks()))[: 2 * SAMPLE_RATE]
    return float(np.abs(np.fft.rfft(samples)).argmax()) * SAMPLE_RATE / len(samples), recording.warnings


@pytest.mark.parametrize(("container", "codec"), [("matroska", "pcm_s16le"), ("mp4", "aac"), ("mpegts", "aac")])
@pytest.mark.parametrize(
    ("requested", "frequency"),
    [
        ("0", 300),
        ("1", 600),
        ("2", 900),
        ("de", 300),
        ("deu", 300),
        ("GER", 300),
        ("de-AT", 300),
        ("german", 300),
        ("en", 600),
        ("eng", 600),
    ],
)
def test_a_track_is_chosen_by_its_number_or_its_language(container: str, codec: str, requested: str, frequency: float) -> None:
    measured, warnings = pitch(film(THREE, container, codec), requested)
    assert measured == pytest.approx(frequency, abs=3)
    assert warnings == []


def test_without_a_choice_the_reply_tells_what_there_is() -> None:
    measured, warnings = pitch(film(THREE), None)
    assert measured in (300, 600, 900)
    taken = {300: 0, 600: 1, 900: 2}[int(measured)]
    assert warnings == [
        f"the recording has 3 sound tracks: 0 (ger), 1 (eng, Commentary), 2; number {taken} was taken; "
        "choose one with audio_track, by its number or its language"
    ]
    assert pitch(film(THREE[:1]), None)[1] == []


@pytest.mark.parametrize("requested", ["3", "99999999999999999999", "fr", "klingon"])
def test_a_track_that_is_not_there_is_refused_with_those_that_are(requested: str) -> None:
    with pytest.raises(InvalidRequest, match=r"has 3 sound tracks: 0 \(ger\), 1 \(eng, Commentary\), 2") as refused:
        open_recording(film(THREE), track=requested)
    assert refused.value.param == "audio_track" and refused.value.status == 400
    with pytest.raises(InvalidRequest, match="only one sound track: 0"):
        open_recording(film([(300.0, None, None)]), track=requested)


@pytest.mark.parametrize("strategy", ["chunked", "sequential"])
@pytest.mark.parametrize("channels", ["mono", "separate"])
def test_the_reply_lists_the_tracks(strategy: Any, channels: Any) -> None:
    data = film(THREE)
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        options = Options(vad_filter=False, strategy=strategy, channels=channels)
        transcript = transcriber.submit(data, options).result(30)
        assert transcript.audio_tracks == (AudioTrack(0, "ger"), AudioTrack(1, "eng", "Commentary"), AudioTrack(2))
        assert len(transcript.warnings) == 1
        chosen = transcriber.submit(data, Options(vad_filter=False, strategy=strategy, audio_track="en")).result(30)
        assert chosen.warnings == () and len(chosen.audio_tracks) == 3
        alone = transcriber.submit(film(THREE[:1]), options).result(30)
        assert alone.audio_tracks == ()
        with pytest.raises(InvalidRequest, match="no sound track in the language 'fr'"):
            transcriber.submit(data, Options(audio_track="fr")).result(30)
    for reply in (Reply(), Reply(response_format="verbose_json")):
        reply_json = json.loads(render(transcript, reply).payload)
        assert reply_json["audio_tracks"] == [
            {"index": 0, "language": "ger"},
            {"index": 1, "language": "eng", "title": "Commentary"},
            {"index": 2, "language": None},
        ]
        assert "audio_tracks" not in json.loads(render(alone, reply).payload)


@pytest.mark.parametrize(("value", "kept"), [(1, "1"), ("1", "1"), (0, "0"), ("DE", "de"), ("none", None), ("auto", None), (None, None)])
def test_the_option(value: Any, kept: str | None) -> None:
    assert read_options({"audio_track": value}).audio_track == kept


@pytest.mark.parametrize("value", [-1, "-1", 1.5, True, [1], "?", "x" * 100, {"a": 1}, "en\nfr", "²"])
def test_what_is_no_track(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="audio_track"):
        read_options({"audio_track": value})


def test_hundreds_of_tracks_and_titles_of_several_lines_are_told_shortly() -> None:
    data = film([(300.0, "eng", "Take\n1\x1b[0m" + "!" * 500)] + [(300.0 + index, None, None) for index in range(40)])
    with open_recording(data) as recording:
        (warning,) = recording.warnings
        assert len(recording.tracks) == 41
    assert len(warning) < 400 and warning.isprintable() and "and 25 more" in warning


@pytest.mark.parametrize("codec", ["mp2", "ac3"])
def test_tracks_that_begin_on_the_way_are_left_out(codec: str) -> None:
    """Two programmes of a broadcast, one after the other: a receiver begins a new track where the second one begins."""
    first, second = (
        encode(sweep(1.0, 48_000), "mpegts", codec, 48_000, options={"mpegts_start_pid": pid, "mpegts_pmt_start_pid": table})
        for pid, table in (("256", "4096"), ("512", "4098"))
    )
    with open_recording(first + second) as recording:
        assert sum(map(len, recording.blocks())) / SAMPLE_RATE == pytest.approx(1.0, abs=0.1)
