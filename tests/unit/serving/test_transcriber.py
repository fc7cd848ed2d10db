"""The core in process, on the fake engine: order, fairness of reading, language, fallback, failure, cancellation."""

from __future__ import annotations

import io
import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile

from tests.unit.doubles import PATIENCE, WHOLE, Recorder, wav
from whispercore.audio.decoder import Decoder
from whispercore.audio.recording import read_samples
from whispercore.devices import logical_cores
from whispercore.engines.fake import FakeEngine
from whispercore.errors import Cancelled, EngineError, InvalidRequest, Overloaded, TooLarge, UnreadableAudio, UnsupportedAudio
from whispercore.options import Options
from whispercore.serving.admission import BYTES_PER_SECOND
from whispercore.serving.job import Job
from whispercore.serving.passes import Passes
from whispercore.serving.readers import Step
from whispercore.serving.track import PartWindow, Track
from whispercore.serving.transcriber import Transcriber, _check_cost
from whispercore.settings import Settings
from whispercore.tokenizer import Tokenizer
from whispercore.types import SAMPLE_RATE, Decoded, Progress, Samples, Window


@pytest.fixture
def transcriber() -> Iterator[Transcriber]:
    with Transcriber(Settings(), engine=FakeEngine()) as opened:
        yield opened


def test_a_long_recording_comes_back_in_order_and_whole(transcriber: Transcriber) -> None:
    transcript = transcriber.submit(wav(95), WHOLE).result(PATIENCE)
    assert transcript.duration == pytest.approx(95.0, abs=0.01)
    starts = [segment.start for segment in transcript.segments]
    assert starts == sorted(starts) and transcript.segments[0].start == 0.0
    assert transcript.segments[-1].end == pytest.approx(95.0, abs=0.02)
    gaps = [late.start - early.end for early, late in zip(transcript.segments, transcript.segments[1:], strict=False)]
    assert max(map(abs, gaps)) < 0.05


def test_the_same_words_alone_and_among_others(transcriber: Transcriber) -> None:
    alone = transcriber.submit(wav(40, seed=1), WHOLE).result(PATIENCE)
    jobs = [transcriber.submit(wav(40, seed=seed % 4), WHOLE) for seed in range(16)]
    together = [job.result(PATIENCE).text for job in jobs]
    assert together[1] == together[5] == alone.text and len(set(together)) == 4


def test_the_language_is_decided_once_by_the_first_window_with_words() -> None:
    engine = Recorder()
    with Transcriber(Settings(), engine=engine) as transcriber:
        silence_then_speech = io.BytesIO()
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 100 * SAMPLE_RATE).astype(np.float32)
        noise[: 40 * SAMPLE_RATE] = 0
        soundfile.write(silence_then_speech, noise, SAMPLE_RATE, format="WAV")
        transcript = transcriber.submit(silence_then_speech.getvalue(), WHOLE).result(PATIENCE)
    assert {window.decoding.language for window in engine.windows if window.start < 40} == {None}
    assert transcript.language == "en"


class Polyglot(Recorder):
    """Detects `languages` by the start of the window, else English.

    The text names the language that the window was decoded in.
    """

    def __init__(self, languages: dict[float, str], silent: float | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self.languages, self.silent = languages, silent

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        return [self._decoded_in(window, decoded) for window, decoded in zip(windows, super().decode(windows), strict=True)]

    def _decoded_in(self, window: Window, decoded: Decoded) -> Decoded:
        language = window.decoding.language or self.languages.get(window.start, "en")
        if window.start == self.silent:
            return replace(decoded, tokens=(), text="", language=language, token_times=(), token_probs=())
        tokens, seconds = self.tokenizer.encode(f" {language}"), window.duration
        return replace(decoded, tokens=tokens, text=f" {language}", language=language, token_times=(0.0, seconds), token_probs=(0.9,))


@pytest.mark.parametrize(
    ("languages", "silent", "text", "twice"),
    [
        ({}, None, "en en en en", 0),
        ({30.0: "de", 90.0: "fr"}, None, "en en en en", 2),
        ({0.0: "de"}, None, "de de de de", 3),
        ({0.0: "ja", 30.0: "de"}, 0.0, "de de de", 2),
    ],
)
def test_the_first_words_decide_the_language_of_windows_decoded_with_them(
    languages: dict[float, str], silent: float | None, text: str, twice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whispercore.serving.scheduler.WAIT_FOR_READING", 1e9)
    engine = Polyglot(languages, silent, max_batch=4)
    with Transcriber(Settings(), engine=engine) as transcriber:
        transcriber.submit(wav(1), WHOLE).result(PATIENCE)
        engine.windows.clear()
        clips = (0.0, 30.0, 30.0, 60.0, 60.0, 90.0, 90.0, 110.0)
        transcript = transcriber.submit(wav(110), replace(WHOLE, clip_timestamps=clips)).result(PATIENCE)
    assert (transcript.text, transcript.language) == (text, text[:2])
    assert len(engine.windows) == 4 + twice


def test_a_guess_is_decoded_again_at_the_next_temperature_and_the_last_one_kept() -> None:
    engine = Recorder(logprob=lambda window: -0.3 if window.decoding.temperature >= 0.4 else -3.0)
    with Transcriber(Settings(), engine=engine) as transcriber:
        transcript = transcriber.submit(wav(5), WHOLE).result(PATIENCE)
        assert transcriber.scheduler.counters.retries_at_higher_temperature == 2
    assert [window.decoding.temperature for window in engine.windows] == [0.0, 0.2, 0.4]
    assert {segment.temperature for segment in transcript.segments} == {0.4}


def test_the_initial_prompt_reaches_every_window() -> None:
    engine = Recorder()
    with Transcriber(Settings(), engine=engine) as transcriber:
        transcriber.submit(wav(70), Options(vad_filter=False, initial_prompt="Ada Lovelace")).result(PATIENCE)
    assert {engine.tokenizer.decode(window.decoding.prompt) for window in engine.windows} == {" Ada Lovelace"}


def test_a_bad_recording_fails_alone() -> None:
    engine = FakeEngine(fails=lambda window: len(window.samples) == 3 * SAMPLE_RATE)
    with Transcriber(Settings(), engine=engine) as transcriber:
        jobs = [transcriber.submit(wav(seconds), WHOLE) for seconds in (2, 3, 4)]
        broken = transcriber.submit(b"not audio at all", WHOLE)
        assert jobs[0].result(PATIENCE).text and jobs[2].result(PATIENCE).text
        with pytest.raises(EngineError):
            jobs[1].result(PATIENCE)
        with pytest.raises(UnsupportedAudio):
            broken.result(PATIENCE)
        assert transcriber.open_requests == 0


def test_reading_pauses_while_the_engine_is_behind() -> None:
    engine = Recorder(max_batch=2)
    engine.gate.clear()
    with Transcriber(Settings(readers=1), engine=engine) as transcriber:
        file = transcriber.submit(wav(600), Options(vad_filter=False, language="en"))
        clip = transcriber.submit(wav(2), WHOLE)
        opened = threading.Event()
        watched = transcriber.submit(wav(2), WHOLE, on_news=opened.set)
        assert opened.wait(PATIENCE), "a paused file frees its reader"
        assert transcriber.scheduler.waiting() <= 4 + 2
        engine.gate.set()
        assert file.result(PATIENCE).segments and clip.result(PATIENCE).text == watched.result(PATIENCE).text


def test_an_hour_of_silence_keeps_no_clip_from_being_read() -> None:
    hour = io.BytesIO()
    soundfile.write(hour, np.zeros(3600 * SAMPLE_RATE, np.int16), SAMPLE_RATE, format="WAV")
    silent_ended: list[bool] = []
    with Transcriber(Settings(readers=1), engine=Recorder()) as transcriber:
        silent = transcriber.submit(hour.getvalue(), Options())
        clip = transcriber.submit(wav(2), WHOLE, on_news=lambda: silent_ended.append(silent.ended))
        assert clip.result(PATIENCE).text
        assert not silent.result(PATIENCE).segments
    assert not silent_ended[0], "the clip was opened while the hour was being read"


@pytest.mark.parametrize("language", ["en", None])
def test_the_windows_of_a_short_file_share_a_batch(language: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.scheduler.WAIT_FOR_READING", 1e9)
    options = replace(WHOLE, language=language)
    with Transcriber(Settings(), engine=Recorder(max_batch=8)) as transcriber:
        transcriber.submit(wav(2), options).result(PATIENCE)
        batches = transcriber.scheduler.counters.batches
        transcriber.submit(wav(100), options).result(PATIENCE)
        assert transcriber.scheduler.counters.batches - batches == 1


def test_the_first_window_of_a_stream_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.scheduler.WAIT_FOR_READING", 1e9)
    progressed = threading.Event()

    class Halting(io.BytesIO):
        """Goes on after 70 s only when there has been progress."""

        def read(self, size: int | None = -1) -> bytes:
            assert not 70 < self.tell() / (2 * SAMPLE_RATE) < 90 or progressed.wait(PATIENCE)
            return super().read(size)

    with Transcriber(Settings(), engine=Recorder()) as transcriber:
        transcriber.submit(wav(2), WHOLE).result(PATIENCE)
        assert transcriber.submit(Halting(wav(130)), WHOLE, on_progress=progressed.set).result(PATIENCE).segments


def test_cancelling_drops_the_windows_in_the_queue() -> None:
    engine = Recorder(max_batch=1)
    engine.gate.clear()
    with Transcriber(Settings(), engine=engine) as transcriber:
        job = transcriber.submit(wav(300), WHOLE)
        job.cancel()
        engine.gate.set()
        with pytest.raises(Cancelled):
            job.result(PATIENCE)
        assert transcriber.submit(wav(1), WHOLE).result(PATIENCE).text
    assert len(engine.windows) <= 2


def test_the_limits_are_errors() -> None:
    engine = Recorder()
    engine.gate.clear()
    with Transcriber(Settings(max_audio_seconds=10, max_open_requests=2), engine=engine) as transcriber:
        with pytest.raises(TooLarge):
            transcriber.submit(wav(11), WHOLE).result(PATIENCE)
        open_jobs: list[Job] = [transcriber.submit(wav(1), WHOLE) for _ in range(2)]
        with pytest.raises(Overloaded):
            transcriber.submit(wav(1), WHOLE)
        engine.gate.set()
        assert all(job.result(PATIENCE).text for job in open_jobs)
        assert transcriber(io.BytesIO(wav(1)), vad_filter=False).text == open_jobs[0].result().text


def test_a_bad_option_is_an_error_that_names_it(transcriber: Transcriber) -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        transcriber(wav(1), temperature=(3.0,))


def test_what_the_model_cannot_do_is_refused(transcriber: Transcriber) -> None:
    with pytest.raises(InvalidRequest, match="klingon"):
        transcriber(wav(1), language="klingon")
    english_only = FakeEngine()
    english_only.tokenizer = Tokenizer(51_864)
    with Transcriber(Settings(), engine=english_only) as narrow:
        assert narrow(wav(1), language="en", vad_filter=False).text
        refusals: tuple[dict[str, Any], ...] = ({"language": "fr"}, {"task": "translate"})
        for refused in refusals:
            with pytest.raises(InvalidRequest, match=r"English|know"):
                narrow(wav(1), **refused)


def test_progress_grows_in_order_and_ends_as_the_transcript() -> None:
    engine = Recorder(max_batch=1)
    engine.gate.clear()
    reports: list[Progress] = []
    with Transcriber(Settings(), engine=engine) as transcriber:
        options = Options(vad_filter=False, language="en")
        job = transcriber.submit(wav(100), options, on_progress=lambda: reports.append(job.progress))
        engine.gate.set()
        transcript = job.result(PATIENCE)
    assert len(reports) == len(engine.windows) >= 4
    for early, late in itertools.pairwise(reports):
        assert late.segments[: len(early.segments)] == early.segments and late.seconds > early.seconds
    assert reports[-1].segments == transcript.segments and reports[-1].duration == pytest.approx(100, abs=0.01)
    assert job.progress == Progress(transcript.segments, transcript.duration, transcript.duration)


def test_channels_are_transcribed_apart_and_merged_by_time() -> None:
    left, right = noise(40, seed=1), noise(40, seed=2)
    right[: 10 * SAMPLE_RATE] = 0
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        alone = [transcriber.submit(encoded(channel), WHOLE).result(PATIENCE) for channel in (left, right)]
        both = transcriber.submit(encoded(np.stack([left, right], axis=1)), replace(WHOLE, channels="separate")).result(PATIENCE)
        mono = transcriber.submit(encoded(left), replace(WHOLE, channels="separate")).result(PATIENCE)
    assert [segment.start for segment in both.segments] == sorted(segment.start for segment in both.segments)
    for number, expected in enumerate(alone):
        assert [replace(segment, channel=None) for segment in both.segments if segment.channel == number] == list(expected.segments)
    assert both.duration == pytest.approx(40.0, abs=0.01)
    assert mono.segments == alone[0].segments, "a mono recording has nothing to separate"


def test_an_open_file_serves_every_pass() -> None:
    stereo = encoded(np.stack([noise(8, seed=1), noise(8, seed=2)], axis=1))
    for options in (replace(WHOLE, channels="separate"), replace(WHOLE, strategy="sequential")):
        with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
            texts = [transcriber.submit(source, options).result(PATIENCE).text for source in (stereo, io.BytesIO(stereo))]
        assert texts[0] and texts[0] == texts[1]


def test_a_stream_of_two_channels_is_in_order_too() -> None:
    engine, reports = Recorder(max_batch=1), list[Progress]()
    engine.gate.clear()
    with Transcriber(Settings(), engine=engine) as transcriber:
        recording = encoded(np.stack([noise(70, seed=1), noise(70, seed=2)], axis=1))
        options = Options(vad_filter=False, language="en", channels="separate")
        job = transcriber.submit(recording, options, on_progress=lambda: reports.append(job.progress))
        engine.gate.set()
        transcript = job.result(PATIENCE)
    for progress in reports:
        assert transcript.segments[: len(progress.segments)] == progress.segments
    assert {segment.channel for segment in transcript.segments} == {0, 1}
    assert any(0 < len(progress.segments) < len(transcript.segments) for progress in reports)


def test_words_in_silence_are_reported_as_dropped() -> None:
    class Doubtful(FakeEngine):
        def decode(self, windows: Sequence[Window]) -> list[Decoded]:
            return [replace(decoded, no_speech_prob=0.9, avg_logprob=-2.0) for decoded in super().decode(windows)]

    with Transcriber(Settings(), engine=Doubtful()) as transcriber:
        transcript = transcriber.submit(wav(20), WHOLE).result(PATIENCE)
    assert transcript.text == "" and transcript.segments == ()
    (dropped,) = transcript.dropped
    assert dropped.reason == "no_speech" and dropped.text and (dropped.start, dropped.end) == (0.0, 20.0)


def test_words_lie_within_their_segments_in_both_strategies() -> None:
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        for strategy in ("chunked", "sequential"):
            options = Options(vad_filter=False, strategy=strategy, word_timestamps=True, token_logprobs=True)
            transcript = transcriber.submit(wav(65), options).result(PATIENCE)
            assert transcript.segments and all(segment.words for segment in transcript.segments)
            for segment in transcript.segments:
                assert "".join(word.word for word in segment.words) == segment.text
                assert segment.start <= segment.words[0].start and segment.words[-1].end <= segment.end
                assert len(segment.logprobs) == sum(token < Tokenizer(51_865).eot for token in segment.tokens)
                for early, late in itertools.pairwise(segment.words):
                    assert early.start <= early.end <= late.start <= late.end


def test_the_language_of_every_window_when_asked() -> None:
    engine = Recorder()
    with Transcriber(Settings(), engine=engine) as transcriber:
        transcriber.submit(wav(100), Options(vad_filter=False, multilingual=True)).result(PATIENCE)
    assert {window.decoding.language for window in engine.windows} == {None}


@pytest.mark.parametrize(("multilingual", "count"), [(False, 1), (True, 6)])
def test_sentences_between_long_silences_share_a_window_unless_each_may_have_its_language(multilingual: bool, count: int) -> None:
    engine = Recorder()
    sentence = read_samples(Path(__file__).parents[3] / "samples" / "timer.flac")
    recording = io.BytesIO()
    soundfile.write(recording, np.concatenate([sentence, np.zeros(8 * SAMPLE_RATE, np.float32)] * 6), SAMPLE_RATE, format="WAV")
    with Transcriber(Settings(), engine=engine) as transcriber:
        transcript = transcriber.submit(recording.getvalue(), Options(multilingual=multilingual)).result(PATIENCE)
    assert len(engine.windows) == count
    assert transcript.segments[-1].end == pytest.approx(transcript.duration - 8, abs=1.0)


@pytest.mark.parametrize("strategy", ["chunked", "sequential"])
def test_clips_alone_are_transcribed(strategy: Literal["chunked", "sequential"]) -> None:
    engine = Recorder()
    with Transcriber(Settings(), engine=engine) as transcriber:
        options = Options(vad_filter=False, strategy=strategy, clip_timestamps=(5.0, 12.0, 50.0))
        transcript = transcriber.submit(wav(60), options).result(PATIENCE)
    assert [(window.start, window.duration) for window in engine.windows] == [(5.0, 7.0), (50.0, 10.0)]
    assert transcript.segments[0].start == 5.0 and transcript.segments[-1].end == 60.0


def test_an_option_the_engine_lacks_is_refused(transcriber: Transcriber) -> None:
    with pytest.raises(InvalidRequest, match=r"beam_size") as refused:
        transcriber.submit(wav(1), Options(beam_size=5))
    assert refused.value.param == "beam_size"


def test_an_error_in_a_windows_text_fails_its_job_alone() -> None:
    class Untimed(FakeEngine):
        def decode(self, windows: Sequence[Window]) -> list[Decoded]:
            return [replace(decoded, token_times=(), token_probs=()) for decoded in super().decode(windows)]

    with Transcriber(Settings(), engine=Untimed()) as transcriber:
        with pytest.raises(EngineError):
            transcriber.submit(wav(1), replace(WHOLE, word_timestamps=True)).result(PATIENCE)
        assert transcriber.submit(wav(1), WHOLE).result(PATIENCE).text


@pytest.mark.parametrize("strategy", ["chunked", "sequential"])
def test_the_engines_thread_processes_no_text(strategy: Literal["chunked", "sequential"], monkeypatch: pytest.MonkeyPatch) -> None:
    engine_threads, text_threads = set[str](), set[str]()

    class Noting(FakeEngine):
        def decode(self, windows: Sequence[Window]) -> list[Decoded]:
            engine_threads.add(threading.current_thread().name)
            return super().decode(windows)

    receive = Track.receive

    def noting(track: Track, request: PartWindow, decoded: Decoded) -> list[PartWindow]:
        text_threads.add(threading.current_thread().name)
        return receive(track, request, decoded)

    monkeypatch.setattr(Track, "receive", noting)
    with Transcriber(Settings(), engine=Noting()) as transcriber:
        options = replace(WHOLE, strategy=strategy, word_timestamps=True)
        assert transcriber.submit(wav(100), options).result(PATIENCE).segments
    assert (engine_threads, text_threads) == ({"scheduler-0"}, {"outcomes"})


def test_sequential_recordings_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whispercore.serving.lanes.WAIT_FOR_REQUESTS", 0.5)  # of 0.2 s, also on a busy machine
    engine = FakeEngine(delay=0.2)
    with Transcriber(Settings(), engine=engine) as transcriber:
        jobs = [transcriber.submit(wav(60, seed), replace(WHOLE, strategy="sequential")) for seed in range(8)]
        assert all(job.result(PATIENCE).segments for job in jobs)
    assert sum(engine.batches) / len(engine.batches) >= 2.5, engine.batches


def test_no_thread_is_left_after_close() -> None:
    before = set(threading.enumerate())
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        assert transcriber.submit(wav(40), WHOLE).result(PATIENCE).segments
        own = {thread.name for thread in set(threading.enumerate()) - before}
        assert {"scheduler-0", "outcomes", "limits", "reader_0"} <= own
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not left & {"scheduler-0", "outcomes", "limits"} and not any(name.startswith("reader") for name in left)


def noise(seconds: float, seed: int) -> Samples:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * SAMPLE_RATE)).astype(np.float32)


def encoded(samples: Samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "name"),
    [(Options(beam_size=11), "beam_size"), (Options(best_of=16), "best_of"), (Options(beam_size=5, patience=2.5), "patience")],
)
def test_a_search_wider_than_the_settings_allow_is_refused(options: Options, name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"{name} must be at most .* max_beams"):
        _check_cost(Settings(), options)
    _check_cost(Settings(max_beams=16, max_patience=10.0), options)


def test_the_clip_of_a_client_beside_a_flood_is_read_and_decoded_next() -> None:
    engine, held, opened = Recorder(max_batch=4), threading.Event(), threading.Event()
    engine.gate.clear()
    with Transcriber(Settings(readers=1), engine=engine) as transcriber:
        transcriber._readers.submit(Step("a", lambda: bool(held.wait(PATIENCE)) and None, lambda error: None))
        flood = [transcriber.submit(wav(1, seed), WHOLE, client="a") for seed in range(200)]
        clip = transcriber.submit(wav(2), WHOLE, client="b", on_news=opened.set)
        held.set()
        assert opened.wait(PATIENCE)
        assert sum(job.opened for job in flood) < 100, "it is read before most of the flood"
        engine.gate.set()
        clip.result(PATIENCE)
        place = [window.duration for window in engine.windows].index(2.0)
        assert place < 2 * engine.max_batch, "it is in the batch after the one that was being decoded"
        for job in flood:
            job.cancel()


def test_audio_waits_until_it_is_transcribed() -> None:
    engine = Recorder(max_batch=1)
    engine.gate.clear()
    with Transcriber(Settings(), engine=engine) as transcriber:
        opened = threading.Event()
        job = transcriber.submit(wav(65), replace(WHOLE, language="en"), on_news=opened.set)
        assert transcriber.waiting_audio_seconds == pytest.approx(65 * 2 * SAMPLE_RATE / BYTES_PER_SECOND, rel=0.01)
        assert opened.wait(PATIENCE) and transcriber.waiting_audio_seconds == pytest.approx(65.0)
        engine.gate.set()
        job.result(PATIENCE)
        assert transcriber.waiting_audio_seconds == 0.0 and transcriber.open_requests == 0


def test_a_recording_that_turns_out_too_long_beside_others_is_refused() -> None:
    engine = Recorder()
    engine.gate.clear()
    with Transcriber(Settings(max_waiting_seconds=60.0), engine=engine) as transcriber:
        opened = threading.Event()
        first = transcriber.submit(wav(40), WHOLE, on_news=opened.set)
        assert opened.wait(PATIENCE)
        compressed = io.BytesIO()
        soundfile.write(compressed, np.zeros(30 * SAMPLE_RATE), SAMPLE_RATE, format="FLAC")
        with pytest.raises(Overloaded, match="wait to be transcribed"):
            transcriber.submit(compressed.getvalue(), WHOLE).result(PATIENCE)
        engine.gate.set()
        assert first.result(PATIENCE).text


def test_a_job_that_is_cancelled_before_it_is_read_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, held = list[float](), threading.Event()
    open_first = Passes.open_first

    def counting(passes: Passes) -> Sequence[int | None]:
        opened.append(time.monotonic())
        return open_first(passes)

    monkeypatch.setattr(Passes, "open_first", counting)
    with Transcriber(Settings(readers=1), engine=FakeEngine()) as transcriber:
        transcriber._readers.submit(Step("", lambda: bool(held.wait(PATIENCE)) and None, lambda error: None))
        uploads = [bytearray(wav(1, seed)) for seed in range(50)]
        left = [transcriber.submit(upload, WHOLE) for upload in uploads]
        for job in left:
            job.cancel()
        assert all(sys.getrefcount(upload) <= 3 for upload in uploads), "the uploads are free before the readers come to them"
        stays = transcriber.submit(wav(2), WHOLE)
        held.set()
        assert stays.result(PATIENCE).text
        assert len(opened) == 1 and transcriber.scheduler.counters.windows == 1


def test_a_reader_that_hangs_ends_one_request_and_is_replaced() -> None:
    hang = threading.Event()

    class Hanging(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            hang.wait(PATIENCE)
            return super().read(size)

    with Transcriber(Settings(readers=2, reading_stall_seconds=0.3), engine=FakeEngine()) as transcriber:
        for _ in range(2):
            poisoned = [transcriber.submit(Hanging(wav(1)), WHOLE) for _ in range(2)]  # as many as there are readers
            for job in poisoned:
                with pytest.raises(UnreadableAudio, match=r"takes more than 0.3 s"):
                    job.result(PATIENCE)
        assert transcriber.submit(wav(1), WHOLE).result(PATIENCE).text
        hang.set()
        assert transcriber.submit(wav(1), WHOLE).result(PATIENCE).text


def test_a_decoder_that_hangs_ends_one_request_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    hang, frames = threading.Event(), Decoder.frames

    def hanging(decoder: Decoder, first: int) -> Iterator[Any]:
        if decoder._stream.duration * decoder._stream.time_base == 3:
            hang.wait(PATIENCE)
        yield from frames(decoder, first)

    monkeypatch.setattr(Decoder, "frames", hanging)
    monkeypatch.setattr("whispercore.serving.transcriber.reads_in_processes", lambda: False)
    with Transcriber(Settings(reading_stall_seconds=0.3), engine=FakeEngine()) as transcriber:
        poisoned = [transcriber.submit(wav(3.0), WHOLE) for _ in range(2 * logical_cores())]
        for job in poisoned:
            with pytest.raises(UnreadableAudio):
                job.result(PATIENCE)
        assert transcriber.submit(wav(1), WHOLE).result(PATIENCE).text
        hang.set()
