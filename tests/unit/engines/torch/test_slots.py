"""Windows enter and leave the slots while others decode, and errors leave the slots empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.unit.engines.torch.doubles import (
    ENGLISH,
    WORDS,
    Delayed,
    Listed,
    check_equal,
    windows,
)
from whispercore.checkpoints import Checkpoint
from whispercore.engines import RefillingEngine
from whispercore.engines.openai import OpenAIEngine
from whispercore.engines.torch import TorchEngine
from whispercore.engines.torch.alignment import Alignment, PendingAlignment, align
from whispercore.engines.torch.engine import _ENCODED_AT_ONCE
from whispercore.engines.torch.slots import Slots
from whispercore.errors import EngineError, OutOfMemory
from whispercore.types import Decoding, Samples, Window


def test_a_long_window_holds_up_nobody(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    engine = TorchEngine(nano, max_batch=2)
    assert isinstance(engine, RefillingEngine)
    long = Window(recordings[0], 0.0, replace(ENGLISH, ignore_eot=True, max_tokens=200))
    short = windows(recordings, replace(ENGLISH, max_tokens=6))
    feed = Listed([long, *short])
    engine.decode_feed(feed)
    assert list(feed.results)[-1] == id(long)
    assert feed.done_when_taken[:4] == [0, 0, 1, 2]
    check_equal([feed.results[id(window)] for window in (long, *short)], [reference.decode([window])[0] for window in (long, *short)])


@pytest.mark.parametrize("decoding", [ENGLISH, replace(ENGLISH, beam_size=3)], ids=["greedy", "beams"])
def test_windows_move_up_into_gaps(nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], decoding: Decoding) -> None:
    """The windows in the first slots end first; those behind them go on from where they are, in other slots."""
    engine = TorchEngine(nano, max_batch=8)
    asked = [Window(samples, 0.0, replace(decoding, max_tokens=3 + 4 * index)) for index, samples in enumerate(recordings[:6])]
    check_equal(engine.decode(asked), [reference.decode([window])[0] for window in asked])


def test_more_windows_than_slots(ours: TorchEngine, reference: OpenAIEngine, recordings: list[Samples]) -> None:
    """Beams of 16 leave fewer slots than the batch has windows."""
    asked = windows(recordings[:4], replace(ENGLISH, beam_size=16, max_tokens=6))
    check_equal(ours.decode(asked), [reference.decode([window])[0] for window in asked])


def test_what_was_decoded_before_leaves_nothing_behind(ours: TorchEngine, recordings: list[Samples]) -> None:
    first = ours.decode(windows(recordings[:3]))
    ours.decode(windows(recordings, replace(ENGLISH, beam_size=5)))
    ours.decode(windows(recordings, replace(ENGLISH, prompt=(400,) * 223, ignore_eot=True, max_tokens=30)))
    assert ours.decode(windows(recordings[:3])) == first


def test_what_was_taken_is_told_by_the_error(nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error the engine has forgotten the windows and decodes on as if nothing had been."""
    engine = TorchEngine(nano, max_batch=2)
    expected = engine.decode(windows(recordings[:1]))

    def broken(self: Slots) -> None:
        raise RuntimeError("device-side assert")

    with monkeypatch.context() as patch:
        patch.setattr(Slots, "advance", broken)
        with pytest.raises(EngineError, match="device-side assert"):
            engine.decode(windows(recordings[:2]))
    assert engine.decode(windows(recordings[:1])) == expected


def test_short_memory_encodes_fewer_at_once(nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(nano, max_batch=4)
    expected = engine.decode(windows(recordings[:4]))
    admitted: list[int] = []
    admit = Slots.admit

    def short(self: Slots, each: Sequence[Window]) -> None:
        if len(each) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        admitted.append(len(each))
        admit(self, each)

    monkeypatch.setattr(Slots, "admit", short)
    assert [one.tokens for one in engine.decode(windows(recordings[:4]))] == [one.tokens for one in expected]
    assert admitted == [1, 1, 1, 1]

    def none(self: Slots, each: Sequence[Window]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Slots, "admit", none)
    with pytest.raises(OutOfMemory):
        engine.decode(windows(recordings[:4]))


def test_it_is_closed(nano: Checkpoint, recordings: list[Samples]) -> None:
    engine = TorchEngine(nano, max_batch=1)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.decode(windows(recordings[:1]))


def test_looks_that_arrive_late(
    nano: Checkpoint, reference: OpenAIEngine, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whispercore.engines.torch.engine.make_device", lambda *_: Delayed())
    engine = TorchEngine(nano, max_batch=5)
    prompt = engine.tokenizer.encode(WORDS)
    for decoding in (ENGLISH, replace(ENGLISH, beam_size=3), replace(ENGLISH, alignment="all", prompt=prompt)):
        limits = (200, 3, 17, 200, 6, 200)
        asked = [Window(samples, 0.0, replace(decoding, max_tokens=most)) for samples, most in zip(recordings, limits, strict=False)]
        feed = Listed(asked, at_most=2)
        engine.decode_feed(feed)
        check_equal([feed.results[id(window)] for window in asked], [reference.decode([window])[0] for window in asked])


class Trickling(Listed):
    """A recording that is being read: whenever the engine asks, one more window has arrived."""

    arrived = 0

    def take(self, most: int, *, at_least: int = 1) -> list[Window]:
        self.arrived += 1
        self.at_most = self.arrived - len(self.taken)
        return super().take(most, at_least=at_least)


def test_windows_that_come_one_by_one_are_admitted_together(
    nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whispercore.engines.torch.engine.make_device", lambda *_: Delayed())
    monkeypatch.setitem(_ENCODED_AT_ONCE, "cpu", 3)
    engine, admitted, admit = TorchEngine(nano, max_batch=16), list[int](), Slots.admit

    def noting(self: Slots, each: Sequence[Window]) -> None:
        admitted.append(len(each))
        admit(self, each)

    monkeypatch.setattr(Slots, "admit", noting)
    asked = windows([recordings[0]] * 10, replace(ENGLISH, ignore_eot=True, max_tokens=60))
    feed = Trickling(asked)
    engine.decode_feed(feed)
    assert admitted == [2, 3, 3, 2], "the first ones at once, as the engine is idle; then as many as go together, and in the end the rest"
    assert set(feed.results) == {id(window) for window in asked}


def test_times_of_words_are_not_waited_for(nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next steps are queued before the host asks for an alignment, unless nothing is left to decode."""
    monkeypatch.setattr("whispercore.engines.torch.engine.make_device", lambda *_: Delayed())
    engine, events = TorchEngine(nano, max_batch=2), list[str]()
    advance, wait = Slots.advance, PendingAlignment.wait

    def advancing(self: Slots) -> None:
        events.append("steps")
        advance(self)

    def waiting(self: PendingAlignment) -> list[Alignment]:
        events.append("times")
        return wait(self)

    def aligning(*arguments: object, **named: object) -> PendingAlignment:
        events.append("aligned")
        return align(*arguments, **named)

    monkeypatch.setattr(Slots, "advance", advancing)
    monkeypatch.setattr(PendingAlignment, "wait", waiting)
    monkeypatch.setattr("whispercore.engines.torch.engine.align", aligning)
    limits = (4, 60)
    found = engine.decode(
        [
            Window(samples, 0.0, replace(ENGLISH, alignment="all", max_tokens=most))
            for samples, most in zip(recordings[4:], limits, strict=False)
        ]
    )
    assert all(len(one.token_times) == len(one.token_probs) + 1 > 1 for one in found)
    first = events.index("aligned")
    assert events[first + 1] == "steps" and events.count("times") == events.count("aligned")


def test_a_warm_start_ends_in_time_and_survives_short_memory(
    nano: Checkpoint, recordings: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(nano, max_batch=2)
    expected = engine.decode(windows(recordings[:2]))
    slots = engine.slots
    assert slots.warm(0.0, together=2, encodes=False) == 1

    def short(self: Slots, *_: object, **__: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Slots, "warm", short)
    engine.warm_up(1.0)
    assert engine._encoded_at_once == 1
    assert [one.tokens for one in engine.decode(windows(recordings[:2]))] == [one.tokens for one in expected]
