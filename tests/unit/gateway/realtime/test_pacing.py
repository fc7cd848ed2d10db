"""The interval follows what a transcription takes."""

from __future__ import annotations

import pytest

from gateway.realtime.pacing import LONGEST, SHORTEST, Pacing


def test_a_fast_machine_has_the_shortest_interval() -> None:
    pacing = Pacing()
    assert pacing.interval == SHORTEST
    pacing.measured(0.05)
    assert pacing.interval == SHORTEST


def test_the_interval_grows_with_the_load_and_shrinks_again() -> None:
    pacing = Pacing()
    for _ in range(10):
        pacing.measured(2.0)
    assert pacing.interval == pytest.approx(2.0)
    for _ in range(20):
        pacing.measured(0.3)
    assert pacing.interval == pytest.approx(0.3, abs=0.01)


def test_refusals_double_the_interval_up_to_the_longest() -> None:
    pacing = Pacing()
    pacing.measured(1.0)
    before = pacing.interval
    pacing.refused()
    assert pacing.interval == 2 * before
    for _ in range(10):
        pacing.refused()
    assert pacing.interval == LONGEST
