"""Where turns start and stop, for given speech probabilities."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.realtime.options import ServerVad
from gateway.realtime.turns import LONGEST, SHORTEST_VOICE, Started, Stopped, Turns
from whispercore.audio.silero import FRAME

VAD = ServerVad(threshold=0.5, prefix_padding_ms=320, silence_duration_ms=512)
PADDING, SILENCE = 10 * FRAME, 16
"""Samples of padding and frames of silence, of `VAD`."""


def changes(probabilities: list[float], vad: ServerVad = VAD) -> list[Started | Stopped]:
    turns = Turns(vad)
    return [change for probability in probabilities for change in turns.feed(probability)]


def test_a_turn_has_its_padding_and_the_silence_that_ends_it() -> None:
    found = changes([0.0] * 50 + [0.9] * 20 + [0.0] * 40)
    assert found == [Started(50 * FRAME - PADDING), Stopped((70 + SILENCE) * FRAME)]


def test_a_short_pause_does_not_end_a_turn() -> None:
    found = changes([0.9] * 20 + [0.0] * (SILENCE - 1) + [0.9] * 20 + [0.0] * SILENCE)
    assert found == [Started(0), Stopped((20 + SILENCE - 1 + 20 + SILENCE) * FRAME)]


def test_a_click_is_no_turn() -> None:
    assert changes(([0.0] * 20 + [0.9] * (SHORTEST_VOICE - 1)) * 5) == []


def test_the_threshold_counts() -> None:
    loud = ServerVad(threshold=0.8)
    assert changes([0.7] * 50, loud) == []
    assert changes([0.85] * 50, loud) == [Started(0)]


def test_a_turn_goes_on_a_little_below_the_threshold() -> None:
    assert changes([0.9] * 5 + [0.4] * 100) == [Started(0)]


def test_turns_do_not_overlap() -> None:
    eager = ServerVad(prefix_padding_ms=2_000, silence_duration_ms=100)
    _, stopped, second = changes([0.9] * 20 + [0.0] * 6 + [0.9] * 20, eager)
    assert isinstance(stopped, Stopped)
    assert second == Started(stopped.at)


def test_a_long_turn_ends_at_a_short_silence() -> None:
    """Half a second of silence is asked for; after 27 s of speech a sixth of a second is enough."""
    started, stopped = changes([0.9] * 850 + [0.0] * 6 + [0.9] * 2)
    assert (started, isinstance(stopped, Stopped)) == (Started(0), True)


def test_a_turn_without_silence_is_cut_and_goes_on() -> None:
    speech = [0.9] * 2_000
    speech[900] = 0.6
    started, stopped, again, *_ = changes(speech)
    assert started == Started(0)
    assert stopped == Stopped(901 * FRAME)
    assert again == Started(901 * FRAME)


def test_a_commit_of_the_client_ends_the_turn_without_an_event() -> None:
    turns = Turns(VAD)
    for _ in range(20):
        turns.feed(0.9)
    turns.end_turn(20 * FRAME)
    assert not turns.speaking
    assert [change for _ in range(5) for change in turns.feed(0.9)] == [Started(20 * FRAME)]


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 40), st.integers(0, 500), st.integers(0, 500))
def test_turns_alternate_are_in_order_and_short_enough(levels: list[float], each: int, padding: int, silence: int) -> None:
    probabilities = [level for level in levels for _ in range(each)]
    found = changes(probabilities, ServerVad(prefix_padding_ms=padding, silence_duration_ms=silence))
    position = 0
    for i, change in enumerate(found):
        assert isinstance(change, Stopped if i % 2 else Started)
        assert change.at >= position
        assert not i % 2 or change.at - position <= LONGEST
        position = change.at
    assert position <= len(probabilities) * FRAME
