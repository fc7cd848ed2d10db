"""The pools that decode audio: as `ThreadPoolExecutor`, and threads that hang are replaced."""

from __future__ import annotations

import threading
import time

import pytest

from tests.unit.doubles import PATIENCE
from whispercore.audio.threads import GivenUp, ReplaceableThreads


def test_results_and_errors_come_back() -> None:
    threads = ReplaceableThreads(2, "test")
    assert [threads.submit(pow, 2, number).result(PATIENCE) for number in range(20)] == [2**number for number in range(20)]
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(PATIENCE)
    threads.shutdown()
    with pytest.raises(RuntimeError):
        threads.submit(print)


def test_no_more_threads_than_the_count_and_one_when_one_is_enough() -> None:
    threads, together = ReplaceableThreads(3, "pooled"), threading.Barrier(3)
    for _ in range(5):
        threads.submit(time.sleep, 0).result(PATIENCE)
    named = [thread for thread in threading.enumerate() if thread.name.startswith("pooled")]
    assert len(named) == 1
    assert sorted(future.result(PATIENCE) for future in [threads.submit(together.wait, PATIENCE) for _ in range(3)]) == [0, 1, 2]
    threads.shutdown()
    assert not any(thread.is_alive() for thread in threading.enumerate() if thread.name.startswith("pooled"))


def test_shutdown_drops_what_is_queued() -> None:
    threads, gate, began = ReplaceableThreads(1, "test"), threading.Event(), threading.Event()

    def wait() -> bool:
        began.set()
        return gate.wait(PATIENCE)

    running, queued = threads.submit(wait), threads.submit(print)
    assert began.wait(PATIENCE)
    threads.shutdown(wait=False, cancel_futures=True)
    assert queued.cancelled()
    gate.set()
    assert running.result(PATIENCE)


def test_work_that_hangs_is_given_up_and_its_thread_replaced() -> None:
    threads, hang = ReplaceableThreads(1, "test"), threading.Event()
    hanging, waiting = threads.submit(hang.wait, PATIENCE), threads.submit(pow, 2, 3)
    while not threads.give_up(0.05):
        time.sleep(0.01)
    assert waiting.result(PATIENCE) == 8
    with pytest.raises(GivenUp, match=r"takes more than 0.05 s") as given_up:
        hanging.result(PATIENCE)
    assert given_up.value.status == 422
    hang.set()
    assert threads.submit(pow, 2, 4).result(PATIENCE) == 16
    assert not threads.give_up(60)
    threads.shutdown()
