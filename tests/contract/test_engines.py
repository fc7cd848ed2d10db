"""The promises of the engine interface, for every engine, on the bundled model and held-out recordings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import whisper

from tests.contract.conftest import ENGINES, LIKELY, ROOT, WEIGHTED, Recording, having, honours
from whispercore.audio.log_mel import log_mel
from whispercore.checkpoints import Checkpoint, huggingface, prepare
from whispercore.engines import Engine, load_engine
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Decoded, Decoding, Samples, Window

EVERY = having()
RUNS_MODEL = having(among=WEIGHTED)
ENGLISH = Decoding(language="en")
# 8-bit weights shift log-probabilities; float32 differs from openai-whisper only by the order of sums.
TOLERANCE = {
    "openai": 1e-4,
    "torch-float32": 1e-4,
    "torch-bfloat16": 0.05,
    "hf-float32": 1e-3,
    "jax-float32": 1e-3,
    "ct2-float32": 1e-3,
    "ct2-int8": 0.15,
    "onnx-float32": 1e-3,
    "onnx-int8": 0.15,
    "sherpa-float32": 0.0,
    "fake": 0.0,
}
DECODINGS: list[tuple[Decoding, tuple[str, ...]]] = [
    (ENGLISH, ()),
    (Decoding(), ()),
    (Decoding(language="en", beam_size=2), ("beam_size",)),
    (Decoding(language="en", beam_size=2, patience=1.5), ("beam_size", "patience")),
    (Decoding(language="en", beam_size=2, length_penalty=0.6), ("beam_size", "length_penalty")),
    (Decoding(language="en", temperature=0.4), ("temperature",)),
    (Decoding(language="en", temperature=0.8, best_of=3), ("temperature", "best_of")),
    (Decoding(language="en", timestamps=False), ()),
    (Decoding(language="en", prompt=(220,) * 300), ("initial_prompt",)),
]
"""Decoding options, and the options of `Options` that an engine must support for them."""


def windows(recordings: Sequence[Samples], decoding: Decoding = ENGLISH) -> list[Window]:
    return [Window(samples, 0.0, decoding) for samples in recordings]


def batches(engine: Engine, windows: Sequence[Window]) -> list[Decoded]:
    """Decode in batches of at most `max_batch`, as the scheduler does."""
    return [d for i in range(0, len(windows), engine.max_batch) for d in engine.decode(windows[i : i + engine.max_batch])]


def words(text: str) -> str:
    return re.sub(r"[^a-z0-9' ]", "", text.lower())


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    return float(jiwer.wer([words(text) for text in references], [words(text) for text in hypotheses]))


@pytest.fixture(scope="module")
def compared(heldout: list[Recording]) -> list[Recording]:
    """The first held-out recordings of each kind."""
    return [recording for kind in ("synthetic", "digits") for recording in [r for r in heldout if r.kind == kind][:12]]


@pytest.fixture(scope="module")
def transcripts(engines: dict[str, Engine], compared: list[Recording]) -> dict[str, list[Decoded]]:
    """Every engine's results on the compared recordings."""
    return {name: batches(engines[name], windows([recording.samples for recording in compared])) for name in WEIGHTED}


@RUNS_MODEL
@pytest.mark.parametrize(("kind", "limit"), [("synthetic", 0.05), ("digits", 0.2)])
def test_the_word_error_rate(transcripts: dict[str, list[Decoded]], compared: list[Recording], name: str, kind: str, limit: float) -> None:
    pairs = [(r.text, d.text) for r, d in zip(compared, transcripts[name], strict=True) if r.kind == kind]
    assert len(pairs) >= 10
    assert wer(*zip(*pairs, strict=True)) <= limit


@having(LIKELY, among=[name for name in WEIGHTED if name.endswith("float32")])
def test_float32_engines_sample_the_same_tokens(transcripts: dict[str, list[Decoded]], name: str) -> None:
    for reference, other in zip(transcripts["openai"], transcripts[name], strict=True):
        assert other.tokens == reference.tokens
        assert other.avg_logprob == pytest.approx(reference.avg_logprob, abs=1e-3)
        assert other.no_speech_prob == pytest.approx(reference.no_speech_prob, abs=1e-3)
        assert other.compression_ratio == reference.compression_ratio


@RUNS_MODEL
def test_all_engines_decode_the_same_words(transcripts: dict[str, list[Decoded]], name: str) -> None:
    reference, other = ([d.text for d in transcripts[engine]] for engine in ("openai", name))
    assert wer(reference, other) <= 0.02


@RUNS_MODEL
def test_times_are_within_one_step(engines: dict[str, Engine], transcripts: dict[str, list[Decoded]], name: str) -> None:
    """Where the words are equal.

    The bundled model's timestamps are tenths of a second; 8 bits and sherpa-onnx move some by one.
    """
    distances = list[int]()
    begin = engines[name].tokenizer.timestamp_begin
    for reference, other in zip(transcripts["openai"], transcripts[name], strict=True):
        if other.text == reference.text:
            times = [[token - begin for token in decoded.tokens if token >= begin] for decoded in (reference, other)]
            distances += [abs(time - other_time) for time, other_time in zip(*times, strict=True)]
    assert len(distances) >= 40 and max(distances) <= 5
    exact = name.endswith("float32") and honours(name, LIKELY)
    assert sum(distance <= 1 for distance in distances) / len(distances) >= (1.0 if exact else 0.9)


def test_the_samples_are_transcribed(engines: dict[str, Engine]) -> None:
    from whispercore.audio.recording import read_samples

    entries = json.loads((ROOT / "samples" / "transcripts.json").read_text())
    short = [item for item in entries if item["kind"] == "synthetic" and item["segments"][-1]["end"] < 29]
    assert len(short) >= 3
    decoded = batches(engines["ct2-int8"], windows([read_samples(ROOT / "samples" / item["file"]) for item in short]))
    assert wer([item["text"] for item in short], [d.text for d in decoded]) <= 0.1


def test_openai_engine_is_whisper_decode(engines: dict[str, Engine], nano: Checkpoint, speech: list[Samples]) -> None:
    model = whisper.model.Whisper(nano.dims)
    model.load_state_dict(nano.state)
    for beam_size in (None, 3):
        decoding = replace(ENGLISH, beam_size=beam_size)
        for window, ours in zip(windows(speech, decoding), engines["openai"].decode(windows(speech, decoding)), strict=True):
            mel = log_mel(window, nano.dims.n_mels)
            theirs = whisper.decode(model, mel, whisper.DecodingOptions(language="en", beam_size=beam_size, fp16=False))
            assert ours.tokens == tuple(theirs.tokens)
            assert ours.text == engines["openai"].tokenizer.decode(theirs.tokens).strip()
            assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-4)
            assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=1e-4)


@EVERY
def test_a_batch_gives_the_same_results_as_single_windows(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    together = engines[name].decode(windows(speech))
    alone = [engines[name].decode([window])[0] for window in windows(speech)]
    assert [d.tokens for d in together] == [d.tokens for d in alone]
    assert [d.avg_logprob for d in together] == pytest.approx([d.avg_logprob for d in alone], abs=TOLERANCE[name])


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        pytest.param(
            *(name, one), id=f"{name}-t{one.temperature}-beam{one.beam_size}-patience{one.patience}-prompt{len(one.prompt)}-{one.language}"
        )
        for name in ENGINES
        for one, options in DECODINGS
        if honours(name, *options)
    ],
)
def test_every_decoding_gives_sound_values(engines: dict[str, Engine], speech: list[Samples], name: str, decoding: Decoding) -> None:
    engine = engines[name]
    results = engine.decode(windows(speech[:2], decoding))
    assert len(results) == 2
    for result, samples in zip(results, speech, strict=False):
        assert result.text == engine.tokenizer.decode(result.tokens).strip()
        # The nano model decodes no text after a long prompt (see its model card); the engine must not fail
        assert result.text or decoding.prompt
        assert result.temperature == decoding.temperature
        assert result.language == "en"
        assert math.isfinite(result.avg_logprob) and result.avg_logprob <= 0
        assert 0 <= result.no_speech_prob < 0.5
        assert (result.compression_ratio > 0) == bool(result.text)
        assert {type(value) for value in (*result.tokens, result.avg_logprob, result.no_speech_prob)} == {int, float}
        check_timestamps(engine, result, len(samples) / SAMPLE_RATE, decoding.timestamps)


def check_timestamps(engine: Engine, result: Decoded, duration: float, timestamps: bool) -> None:
    begin = engine.tokenizer.timestamp_begin
    times = [(token - begin) * 0.02 for token in result.tokens if token >= begin]
    assert bool(times) == timestamps
    assert times == sorted(times)
    assert all(0 <= time <= 30 for time in times)
    if result.temperature == 0 and times:
        assert times[-1] <= duration + 0.5
    assert all(token < engine.tokenizer.eot or token >= begin for token in result.tokens)


@EVERY
@pytest.mark.parametrize("seconds", [0.1, 3.0, 30.0])
def test_silence_has_no_words(engines: dict[str, Engine], name: str, seconds: float) -> None:
    silence = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    (result,) = engines[name].decode(windows([silence]))
    assert not result.text or (result.no_speech_prob > 0.6 and result.avg_logprob < -1.0)


@EVERY
def test_no_windows_give_nothing(engines: dict[str, Engine], name: str) -> None:
    assert engines[name].decode([]) == []


@EVERY
@pytest.mark.parametrize("length", [1, 160, SAMPLE_RATE // 10])
def test_a_very_short_window(engines: dict[str, Engine], name: str, length: int, speech: list[Samples]) -> None:
    (result,) = engines[name].decode(windows([speech[0][10_000 : 10_000 + length]]))
    assert math.isfinite(result.avg_logprob)


@having("languages", among=WEIGHTED)
def test_the_language_is_detected_beside_windows_with_a_given_language(
    engines: dict[str, Engine], speech: list[Samples], name: str
) -> None:
    mixed = [
        replace(window, decoding=replace(ENGLISH, language=language))
        for window, language in zip(windows(speech), (None, "de", None), strict=False)
    ]
    assert len({engines[name].batch_key(window.decoding) for window in mixed}) == 1
    results = engines[name].decode(mixed)
    assert [result.language for result in results] == ["en", "de", "en"]
    assert [result.language_probability is None for result in results] == [False, True, False]


@having("languages")
def test_the_language_is_detected_among_candidates(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    decodings = [Decoding(), Decoding(languages=("de", "es")), Decoding(languages=("es",)), Decoding(language="fr", languages=("es",))]
    candidates = [Window(samples, 0.0, decoding) for samples, decoding in zip(speech, decodings, strict=False)]
    free, among, only, given = engines[name].decode(candidates)
    assert (free.language, only.language, given.language) == ("en", "es", "fr")
    assert among.language in ("de", "es")
    assert free.language_probability is not None and 0 < free.language_probability <= 1
    assert among.language_probability is not None and 0.5 <= among.language_probability <= 1
    assert only.language_probability == pytest.approx(1.0)
    assert given.language_probability is None


@having("initial_prompt", among=WEIGHTED)
def test_prompts_of_any_length_share_a_batch(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    engine = engines[name]
    prompts = [
        engine.tokenizer.encode(text) for text in ("", " Turn on the light.", " Set a timer for two minutes.", "", " Open the door.")
    ]
    mixed = [Window(samples, 0.0, replace(ENGLISH, prompt=prompt)) for samples, prompt in zip(speech, prompts, strict=True)]
    assert len({engine.batch_key(window.decoding) for window in mixed}) == 1 < len({len(prompt) for prompt in prompts})
    together = engine.decode(mixed)
    alone = [engine.decode([window])[0] for window in mixed]
    assert [d.tokens for d in together] == [d.tokens for d in alone]
    assert [d.avg_logprob for d in together] == pytest.approx([d.avg_logprob for d in alone], abs=TOLERANCE[name])
    unprompted = engine.decode(windows(speech))
    assert [a.avg_logprob == b.avg_logprob for a, b in zip(together, unprompted, strict=True)].count(False) >= 3


def test_parts_of_a_batch_come_back_in_order(settings: Settings, engines: dict[str, Engine], speech: list[Samples]) -> None:
    with closing(load_engine(replace(settings, engine="ct2", dtype="float32", threads=2))) as parted:
        mixed = [Window(samples, 0.0, replace(ENGLISH, prompt=(220,) * (index % 3))) for index, samples in enumerate(speech)]
        assert [d.tokens for d in parted.decode(mixed)] == [d.tokens for d in engines["ct2-float32"].decode(mixed)]


@having("suppress_tokens", among=WEIGHTED)
def test_a_suppressed_token_is_never_sampled(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    engine = engines[name]
    (plain,) = engine.decode(windows(speech[:1]))
    unwanted = next(token for token in plain.tokens if token < engine.tokenizer.eot)
    (other,) = engine.decode(windows(speech[:1], replace(ENGLISH, suppress_tokens=(-1, unwanted, 51_865))))
    assert unwanted not in other.tokens
    (all_may,) = engine.decode(windows(speech[:1], replace(ENGLISH, suppress_tokens=())))
    assert all_may.tokens == plain.tokens  # the tokens that are suppressed by default are unlikely here


@having("max_initial_timestamp", among=WEIGHTED)
@pytest.mark.parametrize("limit", [0.0, 0.1, None])
def test_the_first_timestamp_is_bounded(engines: dict[str, Engine], speech: list[Samples], name: str, limit: float | None) -> None:
    engine = engines[name]
    late = np.concatenate([np.zeros(SAMPLE_RATE // 2, np.float32), speech[0]])
    (decoded,) = engine.decode(windows([late], replace(ENGLISH, max_initial_timestamp=limit)))
    first = (decoded.tokens[0] - engine.tokenizer.timestamp_begin) * 0.02
    assert first <= limit + 1e-9 if limit is not None else first > 0.1


@having("suppress_blank", among=WEIGHTED)
def test_a_window_may_end_at_once(engines: dict[str, Engine], name: str) -> None:
    silence = windows([np.zeros(5 * SAMPLE_RATE, np.float32)], replace(ENGLISH, timestamps=False))
    (kept,) = engines[name].decode(silence)
    may = replace(silence[0], decoding=replace(silence[0].decoding, suppress_blank=False, alignment="all"))
    (empty,) = engines[name].decode([may])
    assert kept.tokens and not empty.tokens
    assert empty.text == "" and empty.token_times == ()
    (reference,) = engines["openai"].decode([may])
    assert empty.avg_logprob == pytest.approx(reference.avg_logprob, abs=TOLERANCE[name])
    for beam_size in (1, 2):
        (beams,) = engines[name].decode([replace(may, decoding=replace(may.decoding, beam_size=beam_size))])
        assert math.isfinite(beams.avg_logprob)


@having("repetition_penalty", "no_repeat_ngram_size", among=WEIGHTED)
@pytest.mark.parametrize(
    "penalties", [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 2}], ids=lambda penalties: next(iter(penalties))
)
def test_repetition_is_penalised(engines: dict[str, Engine], speech: list[Samples], name: str, penalties: dict[str, Any]) -> None:
    long = replace(ENGLISH, ignore_eot=True, max_tokens=60, timestamps=False)
    plain, penalised = (engines[name].decode(windows(speech[:1], decoding))[0] for decoding in (long, replace(long, **penalties)))
    distinct = [len(set(pairwise(decoded.tokens))) for decoded in (plain, penalised)]
    assert distinct[1] > distinct[0]


def test_penalties_are_ctranslate2s(engines: dict[str, Engine], speech: list[Samples]) -> None:
    forced = replace(ENGLISH, ignore_eot=True, max_tokens=40, repetition_penalty=1.3)
    for decoding in (forced, replace(ENGLISH, beam_size=3, no_repeat_ngram_size=2, prompt=(220, 13))):
        ours, theirs = (engines[name].decode(windows(speech[:3], decoding)) for name in ("torch-float32", "ct2-float32"))
        assert [d.tokens for d in ours] == [d.tokens for d in theirs]


@having("temperature", "best_of", among=WEIGHTED)
def test_samples_at_a_temperature_keep_each_windows_own_silence(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    silence = np.zeros(3 * SAMPLE_RATE, np.float32)
    sampled = engines[name].decode(windows([silence, speech[0], speech[1]], replace(ENGLISH, temperature=0.4, best_of=3)))
    greedy = engines[name].decode(windows([silence, speech[0], speech[1]]))
    expected = [d.no_speech_prob for d in greedy]
    assert expected[0] > 0.5 > expected[1]
    assert [d.no_speech_prob for d in sampled] == pytest.approx(expected, abs=1e-3)


@having("max_new_tokens", "beam_size", "initial_prompt", among=WEIGHTED)
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(language="en", ignore_eot=True, max_tokens=40),
        Decoding(language="en", ignore_eot=True, max_tokens=9, timestamps=False),
        Decoding(language="en", ignore_eot=True, max_tokens=12, prompt=(220,) * 223),
        Decoding(language="en", ignore_eot=True, max_tokens=12, beam_size=2),
        Decoding(language="en", ignore_eot=True),
    ],
    ids=["40", "9-text", "12-long-prompt", "12-beams", "224"],
)
def test_a_fixed_number_of_tokens(engines: dict[str, Engine], speech: list[Samples], name: str, decoding: Decoding) -> None:
    results = engines[name].decode(windows(speech[:2], decoding))
    assert [len(result.tokens) for result in results] == [decoding.max_tokens or 224] * 2


@having("max_new_tokens", "initial_prompt", among=WEIGHTED)
def test_a_long_prompt_and_a_long_text_end_with_the_text_context(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    """As whisper.transcribe's: 448 tokens from <|startofprev|> on, and one more that is never fed back."""
    [result] = engines[name].decode(windows(speech[:1], Decoding(language="en", ignore_eot=True, prompt=(220,) * 223)))
    assert len(result.tokens) == 448 + 1 - (1 + 223 + 3)


@having("max_new_tokens")
def test_max_tokens_bounds(engines: dict[str, Engine], speech: list[Samples], name: str) -> None:
    whole, cut = (engines[name].decode(windows(speech[:1], replace(ENGLISH, max_tokens=limit)))[0] for limit in (None, 3))
    assert len(cut.tokens) == 3
    assert whole.tokens[:3] == cut.tokens


@EVERY
def test_it_describes_itself(engines: dict[str, Engine], name: str) -> None:
    described = engines[name].describe()
    assert {"engine", "model", "device", "precision", "threads", "batch"} <= described.keys()
    assert described["engine"] == engines[name].name == name.split("-")[0]
    assert described["batch"] == engines[name].max_batch > 0
    assert engines[name].n_mels == 80
    engines[name].free_memory()


@pytest.fixture(scope="module")
def folder(nano: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in Hugging Face's layout."""
    folder = tmp_path_factory.mktemp("hub") / "household"
    huggingface.write(nano.dims, nano.state, folder, alignment_heads=nano.alignment_heads)
    return folder


@pytest.mark.parametrize("name", [name for name in WEIGHTED if ENGINES[name]["dtype"] == "float32"])
def test_a_hugging_face_folder_gives_the_same_results(
    settings: Settings, engines: dict[str, Engine], folder: Path, speech: list[Samples], name: str
) -> None:
    chosen = replace(settings, **ENGINES[name], model=str(folder))
    prepare(chosen)
    with closing(load_engine(chosen)) as loaded:
        assert loaded.describe()["model"] == "household"
        assert loaded.decode(windows(speech[:1])) == engines[name].decode(windows(speech[:1]))


def test_faster_whisper_reads_the_converted_folder_offline(
    engines: dict[str, Engine], converted: Path, speech: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from faster_whisper import WhisperModel

    model = WhisperModel(str(converted), device="cpu", compute_type="int8", cpu_threads=1)
    segments, _ = model.transcribe(speech[0], language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False)
    (ours,) = engines["ct2-int8"].decode(windows(speech[:1]))
    assert "".join(segment.text for segment in segments).strip() == ours.text
    text = "Hello, world!  It's 3.14 — naïve café 你好 🎉"
    assert model.hf_tokenizer.encode(text, add_special_tokens=False).ids == list(engines["ct2-int8"].tokenizer.encode(text))
