"""The interval follows what a transcription takes, and the number of open turns."""

from __future__ import annotations

import pytest

from gateway.realtime.pacing import LONGEST, SHORTEST, Pacing


class Machine:
    """A clock that the test moves, and a number of open turns."""

    def __init__(self) -> None:
        self.now, self.turns = 0.0, 1
        self.pacing = Pacing(lambda: self.turns, lambda: self.now)

    def transcribe(self, seconds: float, together: int = 1, times: int = 20) -> None:
        for _ in range(times):
            running = [self.pacing.transcription() for _ in range(together)]
            for transcription in running:
                transcription.__enter__()
            self.now += seconds
            for transcription in running:
                transcription.__exit__(None, None, None)


def test_a_fast_machine_has_the_shortest_interval() -> None:
    machine = Machine()
    assert machine.pacing.interval == SHORTEST
    machine.transcribe(0.05)
    assert machine.pacing.interval == SHORTEST


def test_the_interval_is_what_a_transcription_takes() -> None:
    machine = Machine()
    machine.transcribe(2.0)
    assert machine.pacing.interval == pytest.approx(2.0)
    machine.transcribe(0.3)
    assert machine.pacing.interval == pytest.approx(0.3, abs=0.01)


def test_ten_turns_have_ten_times_the_interval_of_one() -> None:
    machine = Machine()
    machine.transcribe(0.3)
    machine.turns = 10
    assert machine.pacing.interval == pytest.approx(3.0)
    machine.turns = 0
    assert machine.pacing.interval == pytest.approx(0.3)


def test_transcriptions_that_share_the_engine_do_not_count_as_slow() -> None:
    machine = Machine()
    machine.transcribe(1.2, together=4)
    assert 0.3 <= machine.pacing.interval < 0.4


def test_a_transcription_that_fails_does_not_count() -> None:
    machine = Machine()
    with pytest.raises(ValueError), machine.pacing.transcription():
        machine.now += 9.0
        raise ValueError
    assert machine.pacing.interval == SHORTEST
    machine.transcribe(0.5, times=1)
    assert machine.pacing.interval == 0.5


def test_refusals_double_the_interval_up_to_the_longest() -> None:
    machine = Machine()
    machine.transcribe(1.0)
    machine.pacing.refused()
    assert machine.pacing.interval == pytest.approx(2.0)
    for _ in range(10):
        machine.pacing.refused()
    assert machine.pacing.interval == LONGEST
