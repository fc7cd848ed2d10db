"""Groups of recordings for actors, and the parts of long recordings put together again."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import Failure, Model, Outcome
from pieces import GROUP_BYTES, MAX_GROUP, Joining, Result, Task, grouped
from storage import Recording

from whispercore.options import Options
from whispercore.types import Segment, Transcript

LONG = Recording("long.mp3", "/long.mp3", 1, "")
MODEL = Model("none", False, 51_865)


@given(st.lists(st.integers(-1, 60_000_000), min_size=1, max_size=300), st.integers(1, 20))
def test_groups_have_every_task_once_and_are_small(sizes: list[int], actors: int) -> None:
    tasks = [Task(Recording(str(number), "", size, "")) for number, size in enumerate(sizes)]
    groups = grouped(tasks, actors)
    assert [task for group in groups for task in group] == tasks
    for group in groups:
        assert 1 <= len(group) <= MAX_GROUP
        assert len(group) == 1 or sum(task.recording.size for task in group) <= GROUP_BYTES


def part(number: int, text: str, language: str = "en", *, last: bool = False, asked: str | None = None) -> Result:
    segments = (Segment(number, number + 1.0, f" {text}"),) if text else ()
    transcript = Transcript(text, language, number + 1.0, "transcribe", segments)
    return Result(Task(LONG, language=asked), Outcome(LONG, 1.0, transcript, MODEL), number, last)


def outcomes(joining: Joining, results: Iterable[Result]) -> list[Outcome]:
    return [outcome for result in results if (outcome := joining.add(result))]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_parts_are_joined_in_order_whenever_they_come(order: tuple[int, ...]) -> None:
    parts = [part(0, "one"), part(1, "two"), part(2, "three", last=True)]
    [outcome] = outcomes(Joining(Options()), [parts[number] for number in order])
    assert outcome.transcript.text == "one two three"
    assert (outcome.transcript.duration, outcome.seconds) == (3.0, 3.0)


def test_a_part_in_another_language_is_done_again() -> None:
    joining = Joining(Options())
    assert outcomes(joining, [part(0, "eins", "de"), part(1, "twee", "nl"), part(2, "drei", "de", last=True)]) == []
    [task] = joining.take_again()
    assert task == Task(LONG, frozenset({1}), "de")
    [outcome] = outcomes(joining, [part(1, "zwei", "de", asked="de")])
    assert (outcome.transcript.text, outcome.transcript.language) == ("eins zwei drei", "de")
    assert joining.take_again() == []


@pytest.mark.parametrize("options", [Options(language="de"), Options(multilingual=True)])
def test_languages_are_left_alone_where_none_is_detected_for_the_recording(options: Options) -> None:
    joining = Joining(options)
    assert len(outcomes(joining, [part(0, "eins", "de"), part(1, "twee", "nl", last=True)])) == 1
    assert joining.take_again() == []


def test_a_part_that_fails_fails_the_recording() -> None:
    failed = Result(Task(LONG), Outcome(LONG, 1.0, failure=Failure("engine_error", "it broke")), 1, False)
    [outcome] = outcomes(Joining(Options()), [part(0, "one"), failed, part(2, "three", last=True)])
    assert outcome.failure.kind == "engine_error"
