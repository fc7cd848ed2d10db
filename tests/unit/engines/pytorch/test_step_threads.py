"""The number of threads of a lone window's steps follows what they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from whispercore.engines.pytorch.step_threads import StepThreads


def run(chooser: StepThreads, steps: int, seconds: Callable[[int, int], float]) -> Counter[int]:
    """How often each number was chosen, when a step takes `seconds` of its number of threads and its own number."""
    chosen = Counter[int]()
    for step in range(steps):
        threads = chooser.choose()
        chooser.note(threads, seconds(threads, step))
        chosen[threads] += 1
    return chosen


def test_on_a_quiet_machine_several_threads_are_used() -> None:
    assert run(StepThreads(2), 1000, lambda threads, step: 0.005 if threads == 1 else 0.004)[1] < 20


def test_while_another_process_computes_one_thread_is_used_and_several_again_afterwards() -> None:
    chooser = StepThreads(4)

    def seconds(threads: int, step: int) -> float:
        return 0.005 if threads == 1 else 0.004 if step < 200 or step >= 1200 else 0.03

    assert run(chooser, 200, seconds)[4] > 190
    assert run(chooser, 1000, lambda threads, step: seconds(threads, 200 + step))[4] < 30
    run(chooser, 2000, lambda threads, step: seconds(threads, 1200 + step))
    assert run(chooser, 200, lambda threads, step: seconds(threads, 3200 + step))[4] > 190


def test_a_single_stall_is_soon_forgotten() -> None:
    chooser = StepThreads(2)
    run(chooser, 3000, lambda threads, step: 1.0 if step == 100 else 0.005 if threads == 1 else 0.004)
    assert run(chooser, 256, lambda threads, step: 0.005 if threads == 1 else 0.004)[2] > 250


def test_threads_that_are_slow_to_begin_are_used_when_they_gain() -> None:
    chooser, last = StepThreads(2), [0]

    def seconds(threads: int, step: int) -> float:
        awake, last[0] = threads == last[0], threads
        return 0.005 if threads == 1 else 0.004 if awake else 0.02

    assert run(chooser, 1000, seconds)[2] > 950
