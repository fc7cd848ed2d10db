"""The engines' other precisions on this machine, which the other suites leave out: the words do not depend on the
batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace

import jiwer
import numpy as np
import pytest

from tests.contract.conftest import ENGINES, Recording
from whispercore.catalogue import ENGINES as NAMES
from whispercore.checkpoints import prepare
from whispercore.devices import multiplies_bfloat16
from whispercore.engines import Engine, load_engine, precisions
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Decoded, Decoding, Samples, Window

ENGLISH = Decoding(language="en")


def others() -> Iterator[tuple[str, str]]:
    """Engine and precision. conftest.py warns about engines that are not installed."""
    tested = {(choice["engine"], choice.get("dtype", "float32")) for choice in ENGINES.values()}
    for name in NAMES:
        with suppress(ConfigurationError):
            yield from ((name, dtype) for dtype in precisions(name, "cpu") if (name, dtype) not in tested)


@pytest.fixture(scope="module", params=others(), ids="-".join)
def engine(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Engine]:
    name, dtype = request.param
    chosen = replace(settings, engine=name, dtype=dtype, batch_size=4)
    prepare(chosen)
    with closing(load_engine(chosen)) as loaded:
        assert (loaded.name, loaded.describe()["precision"]) == (name, dtype)
        yield loaded


def decode(engine: Engine, recordings: Sequence[Samples], together: int) -> list[Decoded]:
    windows = [Window(samples, 0.0, ENGLISH) for samples in recordings]
    return [decoded for i in range(0, len(windows), together) for decoded in engine.decode(windows[i : i + together])]


def is_emulated(engine: Engine) -> bool:
    """Whether this processor lacks the engine's precision, whose windows then take seconds."""
    return "float16" in engine.describe()["precision"] and not multiplies_bfloat16()


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    expected, actual = ([text.lower().strip(".!?") for text in texts] for texts in (references, hypotheses))
    return float(jiwer.wer(expected, actual))


def test_the_word_error_rate_alone_and_in_a_batch(engine: Engine, heldout: list[Recording]) -> None:
    """Low precisions round differently in batches of other sizes, so a few words may differ."""
    spoken = [recording for recording in heldout if recording.kind == "synthetic"][: 2 if is_emulated(engine) else 5]
    together, alone = (decode(engine, [recording.samples for recording in spoken], count) for count in (4, 1))
    for results in (together, alone):
        assert wer([recording.text for recording in spoken], [decoded.text for decoded in results]) <= 0.05
        for decoded in results:
            assert math.isfinite(decoded.avg_logprob) and decoded.avg_logprob <= 0 and 0 <= decoded.no_speech_prob < 0.5
    assert wer([decoded.text for decoded in alone], [decoded.text for decoded in together]) <= 0.02
    expected = pytest.approx([decoded.avg_logprob for decoded in alone], abs=0.15)
    assert [decoded.avg_logprob for decoded in together] == expected


def test_timestamps_rise_within_the_window(engine: Engine, speech: list[Samples]) -> None:
    begin = engine.tokenizer.timestamp_begin
    for decoded, samples in zip(decode(engine, speech[: 1 if is_emulated(engine) else 2], 2), speech, strict=False):
        times = [(token - begin) * 0.02 for token in decoded.tokens if token >= begin]
        assert len(times) >= 2 and times == sorted(times) and times[-1] <= len(samples) / SAMPLE_RATE + 0.5


def test_silence_has_no_words(engine: Engine) -> None:
    assert engine.decode([]) == []
    for decoded in decode(engine, [np.zeros(length, np.float32) for length in (1, 3 * SAMPLE_RATE)], 2):
        assert not decoded.text or (decoded.no_speech_prob > 0.6 and decoded.avg_logprob < -1.0)
