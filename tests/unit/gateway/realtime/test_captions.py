"""What two transcriptions in a row agree on is sent, and never taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.realtime.captions import LONGEST_SECONDS, Captions, Segment, words


def one(text: str) -> list[Segment]:
    return [Segment(0.0, 2.0, text)]


def deltas(captions: Captions, *texts: str) -> list[str]:
    return [captions.update(one(text), 4.0) for text in texts]


def test_the_common_prefix_of_two_transcriptions_is_sent() -> None:
    found = deltas(
        Captions(), " The next", " The next train", " The next rain leaves", " The next train leaves at", " The next train leaves at 9"
    )
    assert found == ["", "The next", "", "", " train leaves at"]


def test_case_and_punctuation_do_not_matter() -> None:
    found = deltas(Captions(), " Well I know.", " Well, I know that.", " Well, I know that she", " Well, I know that she left")
    assert found == ["", "Well, I know", " that", " she"]


def test_the_mark_after_the_last_word_waits_for_the_next_word() -> None:
    captions = Captions()
    assert deltas(captions, " new to Rachel.", " new to Rachel.") == ["", "new to Rachel"]
    assert deltas(captions, " new to Rachel, and", " new to Rachel, and then") == ["", ", and"]
    assert captions.finish("new to Rachel, and then.") == " then."


def test_a_word_inserted_before_the_certain_ones_does_not_repeat_them() -> None:
    captions = Captions()
    deltas(captions, " he went home to", " he went home to rest")
    assert captions.sent == "he went home to"
    deltas(captions, " And he went home to rest now", " And he went home to rest now and")
    assert captions.sent == "he went home to rest now"


def test_characters_are_words_where_there_are_no_blanks() -> None:
    assert deltas(Captions(), "今天天气", "今天天气很好", "今天天气很好。") == ["", "今天天气", "很好"]


def test_the_rest_of_the_transcript_completes_the_deltas() -> None:
    captions = Captions()
    deltas(captions, " Set a timer", " Set a timer for")
    assert captions.finish("Set a timer for five minutes.") == " for five minutes."
    assert captions.sent == "Set a timer for five minutes."


def test_a_transcript_that_differs_adds_nothing() -> None:
    captions = Captions()
    deltas(captions, " Set a time", " Set a time")
    assert captions.finish("Set a timer.") == "r."  # it does begin with the certain text
    captions = Captions()
    deltas(captions, " Sat a time", " Sat a time")
    assert captions.finish("Set a timer.") == ""


def test_certain_sentences_leave_the_window() -> None:
    captions = Captions()
    first, second = Segment(0.2, 5.0, " One two three."), Segment(5.4, 9.0, " Four five")
    captions.update([first, second], 9.0)
    assert captions.offset == 0.0
    assert captions.update([first, second], 9.3) == "One two three. Four five"
    assert captions.offset == 5.2
    rest = [Segment(0.2, 3.8, " Four five"), Segment(3.8, 4.0, " six")]
    assert captions.update(rest, 4.0) == ""
    assert captions.update(rest, 4.3) == " six"
    assert captions.sent == "One two three. Four five six"


def test_the_mark_of_a_sentence_that_leaves_is_sent() -> None:
    captions = Captions()
    captions.update([Segment(0.0, 8.0, " One two.")], 9.0)
    assert captions.update([Segment(0.0, 8.0, " One two."), Segment(8.0, 9.0, " Three")], 9.4) == "One two."
    assert captions.offset == 8.0
    assert captions.update([Segment(0.0, 1.0, " Three four")], 2.0) == " Three"
    assert captions.update([Segment(0.0, 1.0, " Three four")], 2.4) == " four"


def test_a_window_stays_below_30_seconds_without_agreement() -> None:
    captions = Captions()
    for i in range(40):
        seconds = 4.0 * i - captions.offset
        assert seconds <= LONGEST_SECONDS + 4.0
        captions.update([Segment(0.0, seconds / 2, f" word{i} a{i}."), Segment(seconds / 2, seconds, f" other{i}")], seconds)
    assert captions.offset > 100.0


def test_a_long_silence_leaves_the_window() -> None:
    captions = Captions()
    assert captions.update([], 20.0) == ""
    assert captions.offset == 0.0
    captions.update([], 26.0)
    assert captions.offset == 25.0


def test_words_joined_are_the_text() -> None:
    text = ' "Hello," she said - it\'s 3.5 km… 今天, ok?'
    assert "".join(word.text + word.mark for word in words(text)) == text


parts = st.sampled_from(["a", "b", "c", "d.", "E,", "f", "今", "…", "-", "don't"])
texts = st.lists(parts, max_size=12).map(lambda chosen: " " + " ".join(chosen))


@given(st.lists(st.tuples(st.lists(texts, max_size=3), st.floats(0.1, 40.0)), max_size=25), texts)
def test_deltas_only_grow(hypotheses: list[tuple[list[str], float]], transcript: str) -> None:
    """Whatever the transcriptions say: the sent text is the sum of the deltas, and the offset never goes back."""
    captions, sent, offset = Captions(), "", 0.0
    for sentences, seconds in hypotheses:
        each = seconds / max(1, len(sentences))
        sent += captions.update([Segment(i * each, (i + 1) * each, text) for i, text in enumerate(sentences)], seconds)
        assert captions.sent == sent
        assert max(0.0, seconds - LONGEST_SECONDS) - 1e-6 <= captions.offset - offset <= seconds + 1e-6
        offset = captions.offset
    rest = captions.finish(transcript)
    assert sent + rest in (sent, transcript)
