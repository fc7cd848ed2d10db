"""When the watchdog tests, what a failure means, and the watchdog of a process without a launcher."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from tests.unit.doubles import PATIENCE, WHOLE, wav
from whispercore.catalogue import ENGINES
from whispercore.engines.fake import FakeEngine
from whispercore.serving.health import Health
from whispercore.serving.self_test import SelfTest, options, recording
from whispercore.serving.transcriber import Transcriber
from whispercore.serving.watchdog import Verdict, Watchdog
from whispercore.settings import Settings
from whispercore.types import Decoded, Window


def test_a_test_is_due_when_there_was_no_success_for_a_while() -> None:
    watchdog = Watchdog(30.0)
    assert not watchdog.is_due(now=129.0, last_success=100.0) and watchdog.is_due(now=130.0, last_success=100.0)
    assert not Watchdog(0.0).is_due(now=1e9, last_success=0.0)


def test_expensive_tests_are_rare() -> None:
    watchdog = Watchdog(30.0)
    watchdog.note_success(now=100.0, took=10.0)
    assert not watchdog.is_due(now=299.0, last_success=100.0) and watchdog.is_due(now=301.0, last_success=100.0)
    watchdog.note_success(now=1000.0, took=100.0)
    assert watchdog.is_due(now=1301.0, last_success=1000.0), "but not rarer than ten times the usual interval"


def test_the_deadline_grows_with_the_batches() -> None:
    assert Watchdog(30.0).deadline(longest_batch=0.5) == 30.0 and Watchdog(30.0).deadline(longest_batch=12.0) == 120.0


def test_a_failure_ends_readiness_and_the_second_calls_for_a_restart() -> None:
    watchdog = Watchdog(30.0)
    assert watchdog.is_ready and watchdog.note_failure(now=100.0) is Verdict.TEST_AGAIN
    assert not watchdog.is_ready and watchdog.is_due(now=102.0, last_success=99.0), "it does not wait for 30 s"
    assert watchdog.note_failure(now=110.0) is Verdict.RESTART
    assert watchdog.note_restart() is Verdict.TEST_AGAIN and not watchdog.is_ready
    assert watchdog.is_due(now=110.0, last_success=109.0), "the next one is tested at once"
    watchdog.note_success(now=120.0)
    assert watchdog.is_ready


def test_restarts_in_a_row_end_the_server() -> None:
    watchdog = Watchdog(30.0)
    for _ in range(3):
        watchdog.note_failure(now=0.0)
        assert watchdog.note_failure(now=0.0) is Verdict.RESTART
        assert watchdog.note_restart() is Verdict.TEST_AGAIN
    watchdog.note_failure(now=0.0)
    assert watchdog.note_failure(now=0.0) is Verdict.END
    crashing = Watchdog(30.0)
    assert [crashing.note_restart() for _ in range(4)] == [Verdict.TEST_AGAIN] * 3 + [Verdict.END]
    crashing.note_success(now=0.0)
    assert crashing.note_restart() is Verdict.TEST_AGAIN


@pytest.mark.parametrize("engine", ENGINES)
def test_the_test_uses_no_option_that_the_engine_lacks(engine: str) -> None:
    for name in ENGINES[engine].unsupported:
        assert getattr(options(engine), name) == getattr(WHOLE, name)


def test_the_test_is_one_window_of_few_tokens() -> None:
    with Transcriber(Settings(), engine=FakeEngine()) as transcriber:
        transcript = transcriber.submit(recording(), options("fake")).result(PATIENCE)
        assert transcript.duration == 0.5 and transcriber.scheduler.counters.windows == 1


class Troubled(FakeEngine):
    """Hangs while `works` is not set, or raises."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.works = threading.Event()
        self._raises = raises

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        if not self.works.is_set() and self._raises:
            raise RuntimeError("told to fail")
        self.works.wait(PATIENCE)
        return super().decode(windows)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "hangs"])
def test_a_process_whose_engine_does_not_work_is_not_ready_and_ends(raises: bool) -> None:
    engine, reasons = Troubled(raises=raises), list[str]()
    with Transcriber(Settings(watchdog_seconds=0.2), engine=engine) as transcriber:
        health = Health(transcriber)
        assert health.gives_results
        test = SelfTest(health, reasons.append)
        wait_until(lambda: bool(reasons))
        assert health.watchdog_failed and not health.gives_results
        assert ("told to fail" if raises else "no result after") in reasons[0]
        engine.works.set()
        wait_until(lambda: not health.watchdog_failed)
        test.close()


def test_the_test_goes_ahead_of_the_queue_and_any_success_counts() -> None:
    engine, reasons = FakeEngine(max_batch=1, delay=0.05), list[str]()
    with Transcriber(Settings(watchdog_seconds=0.2), engine=engine) as transcriber:
        jobs = [transcriber.submit(wav(1, seed), WHOLE) for seed in range(40)]
        transcriber.submit(recording(), options("fake"), client="\0watchdog").result(PATIENCE)
        assert sum(job.ended for job in jobs) < 20
        test = SelfTest(Health(transcriber), reasons.append)
        assert all(job.result(PATIENCE) for job in jobs)
        test.close()
    assert not reasons
