"""Every precision that an engine computes in on this machine, and that the other suites leave out: the same words, whatever the company."""

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
from whispercore.engines import Engine, load_engine, precisions
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Decoded, Decoding, Samples, Window

ENGLISH = Decoding(language="en")


def others() -> Iterator[tuple[str, str]]:
    """Engine and precision; an engine that is not installed has a warning in conftest.py."""
    known = {(each["engine"], each.get("dtype", "float32")) for each in ENGINES.values()}
    for name in NAMES:
        with suppress(ConfigurationError):
            yield from ((name, dtype) for dtype in precisions(name, "cpu") if (name, dtype) not in known)


@pytest.fixture(scope="module", params=others(), ids="-".join)
def engine(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Engine]:
    name, dtype = request.param
    chosen = replace(settings, engine=name, dtype=dtype, batch_size=4)
    prepare(chosen)
    with closing(load_engine(chosen)) as loaded:
        assert (loaded.name, loaded.describe()["precision"]) == (name, dtype)
        yield loaded


def decoded(engine: Engine, each: Sequence[Samples], together: int) -> list[Decoded]:
    windows = [Window(samples, 0.0, ENGLISH) for samples in each]
    return [one for i in range(0, len(windows), together) for one in engine.decode(windows[i : i + together])]


def wer(truth: Sequence[str], heard: Sequence[str]) -> float:
    return float(jiwer.wer([text.lower().strip(".!?") for text in truth], [text.lower().strip(".!?") for text in heard]))


def test_it_hears_what_is_said_alone_and_in_company(engine: Engine, heldout: list[Recording]) -> None:
    """Low precisions round differently in batches of other sizes: single words may differ, hardly any."""
    spoken = [recording for recording in heldout if recording.kind == "synthetic"][:8]
    together, alone = (decoded(engine, [one.samples for one in spoken], count) for count in (4, 1))
    for found in (together, alone):
        assert wer([one.text for one in spoken], [one.text for one in found]) <= 0.05
        assert all(math.isfinite(one.avg_logprob) and one.avg_logprob <= 0 and 0 <= one.no_speech_prob < 0.5 for one in found)
    assert wer([one.text for one in alone], [one.text for one in together]) <= 0.02
    assert [one.avg_logprob for one in together] == pytest.approx([one.avg_logprob for one in alone], abs=0.15)


def test_timestamps_rise_within_the_window(engine: Engine, speech: list[Samples]) -> None:
    begin = engine.tokenizer.timestamp_begin
    for one, samples in zip(decoded(engine, speech[:2], 2), speech, strict=False):
        times = [(token - begin) * 0.02 for token in one.tokens if token >= begin]
        assert len(times) >= 2 and times == sorted(times) and times[-1] <= len(samples) / SAMPLE_RATE + 0.5


def test_silence_and_nothing_have_no_words(engine: Engine) -> None:
    assert engine.decode([]) == []
    for one in decoded(engine, [np.zeros(length, np.float32) for length in (1, 3 * SAMPLE_RATE)], 2):
        assert not one.text or (one.no_speech_prob > 0.6 and one.avg_logprob < -1.0)
