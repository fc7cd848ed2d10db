"""A recording in parts gives the transcript of the whole, to the last bit."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.unit.doubles import wav
from whispercore.audio.parts import Part, split
from whispercore.audio.recording import open_recording, read_samples
from whispercore.engines.fake import FakeEngine
from whispercore.errors import InvalidRequest
from whispercore.options import Options
from whispercore.serving.assembly import in_another_language, joined
from whispercore.serving.transcriber import Transcriber
from whispercore.types import SAMPLE_RATE, Decoded, Dropped, Segment, Transcript, Window

ROOT = Path(__file__).resolve().parents[3]
EVERYTHING = Options(vad_filter=False)


def parts_of(sound: bytes, options: Options, seconds: float) -> list[Part]:
    """The parts as another machine gets them."""
    with open_recording(sound) as recording:
        return [pickle.loads(pickle.dumps(part)) for part in split(recording, options, seconds)]


@pytest.mark.parametrize(
    "options",
    [
        EVERYTHING,
        Options(vad_filter=False, word_timestamps=True),
        Options(vad_filter=False, clip_timestamps=(10.0, 150.0, 160.0, 500.0)),
        Options(vad_filter=False, multilingual=True),
    ],
)
@pytest.mark.parametrize("seconds", [60.0, 100.0, 1e6])
def test_parts_give_the_transcript_of_the_whole(options: Options, seconds: float) -> None:
    sound = wav(601.7, seed=3)
    parts = parts_of(sound, options, seconds)
    assert len(parts) == 1 if seconds == 1e6 else len(parts) > 4
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(part.windows[-1].end - part.windows[0].start <= seconds for part in parts)
    with Transcriber(engine=FakeEngine()) as transcriber:
        whole = transcriber.submit(sound, options).result(60)
        jobs = [transcriber.submit(part, options) for part in parts]
        assert joined([job.result(60) for job in jobs]) == whole


def times(transcript: Transcript) -> list[tuple[float, float, list[tuple[str, float, float]]]]:
    """Of the segments and of their words."""
    return [(one.start, one.end, [(word.word, word.start, word.end) for word in one.words]) for one in transcript.segments]


@pytest.mark.slow
def test_parts_of_speech_have_the_words_and_times_of_the_whole(tmp_path: Path) -> None:
    """With the voice detector and the bundled model."""
    pause = np.zeros(3 * SAMPLE_RATE, np.float32)
    sounds = [read_samples(ROOT / "samples" / name) for name in ("home.flac", "timer.flac", "digits.flac") * 4]
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.concatenate([samples for sound in sounds for samples in (sound, pause)]), SAMPLE_RATE, subtype="FLOAT")
    options = Options(word_timestamps=True)
    with Transcriber(ROOT / "whisper-models" / "nano.pt", converted_dir=tmp_path / "converted") as transcriber:
        whole = transcriber.submit(path, options).result(120)
        with open_recording(path) as recording:
            parts = list(split(recording, options, 35.0))
        transcript = joined([transcriber.submit(part, options).result(120) for part in parts])
    assert len(parts) >= 4 and len(whole.text.split()) > 200
    assert transcript.text == whole.text
    assert times(transcript) == times(whole)


def test_a_silent_recording_has_one_empty_part() -> None:
    [part] = parts_of(silence(), Options(), 60)
    assert (part.windows, part.is_last, part.duration) == ((), True, 90.0)
    with Transcriber(engine=FakeEngine()) as transcriber:
        assert transcriber.submit(part, Options()).result(20) == transcriber.submit(silence(), Options()).result(20)


def silence() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(90 * 16_000, np.int16), 16_000, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize("options", [Options(strategy="sequential"), Options(channels="separate")])
def test_options_that_need_the_whole_recording(options: Options) -> None:
    [part] = parts_of(wav(3), EVERYTHING, 60)
    with Transcriber(engine=FakeEngine()) as transcriber, pytest.raises(InvalidRequest, match="only the strategy chunked"):
        transcriber.submit(part, options).result(20)


class Bilingual(FakeEngine):
    """Detects the language by the time of the window."""

    def __init__(self, language_at: Callable[[float], str]) -> None:
        super().__init__()
        self._language_at = language_at

    def _decode(self, window: Window) -> Decoded:
        decoded = super()._decode(window)
        return decoded if window.decoding.language else replace(decoded, language=self._language_at(window.start))


def test_a_part_in_another_language_is_done_again_as_in_the_whole() -> None:
    sound = wav(300, seed=5)
    with Transcriber(engine=Bilingual(lambda start: "de" if start < 130 else "nl")) as transcriber:
        whole = transcriber.submit(sound, EVERYTHING).result(60)
        parts = parts_of(sound, EVERYTHING, 60)
        transcripts = [transcriber.submit(part, EVERYTHING).result(60) for part in parts]
        again = in_another_language(transcripts)
        assert again and again == [number for number, part in enumerate(parts) if part.windows[0].start >= 130]
        for number in again:
            transcripts[number] = transcriber.submit(parts[number], replace(EVERYTHING, language="de")).result(60)
        assert joined(transcripts) == whole


def test_a_part_without_words_is_done_again_when_it_may_have_lost_some() -> None:
    def part(language: str, *texts: str, lost: bool = False) -> Transcript:
        dropped = (Dropped(0.0, 1.0, "x", "no_speech"),) if lost else ()
        return Transcript("", language, 1.0, "transcribe", tuple(Segment(0.0, 1.0, text) for text in texts), dropped=dropped)

    parts = [part("en", lost=True), part("de", "a"), part("de", "b", lost=True), part("en"), part("en", lost=True), part("de", "c")]
    assert in_another_language(parts) == [4]
    assert in_another_language([part("en"), part("en", lost=True)]) == []
