"""Several models in one process: loaded when asked for, within a budget, unloaded when idle. The engines are fake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.doubles import PATIENCE, WHOLE, Recorder, wav
from whispercore.errors import Cancelled, ConfigurationError, EngineError, Overloaded
from whispercore.options import Options
from whispercore.serving.health import Health
from whispercore.serving.models import LoadingJob, Models, estimate
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings

A_SIZE = 100


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@dataclass
class Loader:
    """Loads fake engines, keeps them by name, and waits while `gate` is closed. Fails for the names in `broken`."""

    engines: dict[str, Recorder] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)

    def __call__(self, settings: Settings, default: Transcriber) -> Transcriber:
        name = settings.model_id
        self.loads.append(name)
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(PATIENCE)
        if name in self.broken:
            raise ConfigurationError("the checkpoint is broken")
        self.engines[name] = Recorder()
        return Transcriber(settings, engine=self.engines[name], beside=default)


@contextmanager
def pool(names: str, loader: Loader, *, room: int = 10, **settings: float) -> Iterator[Models]:
    """`room`: how many models fit."""
    loader.gate.set()
    default = Transcriber(Settings(model="first", models=names, **settings), engine=Recorder())
    models = Models(default, load=loader, estimate=lambda settings, precision: A_SIZE, budget=room * A_SIZE)
    with ExitStack() as stack:
        stack.callback(models.close)
        stack.callback(lambda: [engine.gate.set() for engine in loader.engines.values()])
        stack.callback(loader.gate.set)
        yield models


def text(models: Models, name: str) -> str:
    return models.submit(name, wav(1), WHOLE).result(PATIENCE).text


def test_one_model_needs_no_thread_and_no_estimate() -> None:
    before = threading.active_count()
    with Transcriber(Settings(model="first"), engine=Recorder()) as default:
        threads = threading.active_count()
        models = Models(default, estimate=lambda settings, precision: pytest.fail("one model is not measured"))
        assert threading.active_count() == threads > before
        assert models.loaded == {"first": True} and models.others() == []
        assert text(models, "first")


def test_many_requests_wait_for_one_load_on_its_own_thread() -> None:
    loader = Loader()
    with pool("first,second", loader) as models:
        loader.gate.clear()
        news = [threading.Event() for _ in range(3)]
        jobs = [models.submit("second", wav(1, seed), WHOLE, on_news=event.set) for seed, event in enumerate(news)]
        assert models.loaded == {"first": True, "second": False}
        assert not any(job.ended or job.opened for job in jobs)
        assert text(models, "first"), "the default model goes on meanwhile"
        with pytest.raises(TimeoutError):
            jobs[0].result(0.01)
        loader.gate.set()
        assert all(job.result(PATIENCE).text for job in jobs) and all(event.wait(PATIENCE) for event in news)
        assert loader.loads == ["second"] and loader.threads == {"models"}
        assert models.loaded["second"] and len(loader.engines["second"].windows) == 3
        assert not isinstance(models.submit("second", wav(1), WHOLE), LoadingJob)


def test_a_request_that_leaves_is_not_begun() -> None:
    loader = Loader()
    with pool("second", loader) as models:
        loader.gate.clear()
        leaves, stays = models.submit("second", wav(1), WHOLE), models.submit("second", wav(1), WHOLE)
        leaves.cancel()
        assert leaves.ended
        with pytest.raises(Cancelled):
            leaves.result(0)
        loader.gate.set()
        assert stays.result(PATIENCE).text
        assert len(loader.engines["second"].windows) == 1


def test_a_bad_option_is_refused_when_the_model_is_there() -> None:
    loader, news = Loader(), threading.Event()
    with pool("second", loader) as models:
        job = models.submit("second", wav(1), Options(beam_size=5), on_news=news.set)
        assert news.wait(PATIENCE) and job.ended
        with pytest.raises(ValueError, match="beam_size"):
            job.result(0)


def test_the_model_that_was_idle_longest_makes_room() -> None:
    loader = Loader()
    with pool("second,third,fourth", loader, room=3) as models:
        for name in ("second", "third", "second", "fourth"):
            assert text(models, name)
        assert models.loaded == {"first": True, "second": True, "third": False, "fourth": True}
        wait_until(lambda: loader.engines["third"].closed)
        assert text(models, "third") and loader.loads == ["second", "third", "fourth", "third"]


def test_a_model_with_open_requests_stays() -> None:
    loader = Loader()
    with pool("second,third", loader, room=2) as models:
        assert text(models, "second")
        loader.engines["second"].gate.clear()
        busy = models.submit("second", wav(1), WHOLE)
        with pytest.raises(Overloaded, match="no room") as refused:
            models.submit("third", wav(1), WHOLE)
        assert refused.value.code == "no_room_for_model" and refused.value.retry_after > 0
        loader.engines["second"].gate.set()
        assert busy.result(PATIENCE).text
        assert text(models, "third") and models.loaded["second"] is False


def test_a_model_that_is_being_loaded_stays() -> None:
    loader = Loader()
    with pool("second,third", loader, room=2) as models:
        loader.gate.clear()
        job = models.submit("second", wav(1), WHOLE)
        with pytest.raises(Overloaded):
            models.submit("third", wav(1), WHOLE)
        loader.gate.set()
        assert job.result(PATIENCE).text


def test_an_idle_model_is_unloaded_after_its_time() -> None:
    loader = Loader()
    with pool("second", loader, models_idle_seconds=0.05) as models:
        assert text(models, "second")
        engine = loader.engines["second"]
        wait_until(lambda: engine.closed)
        assert models.loaded == {"first": True, "second": False}
        assert text(models, "first") and text(models, "second"), "the threads that they share go on"
        assert models.default.scheduler.counters.windows == 3, "the counters are those of all models"


def test_a_failed_load_is_an_error_and_is_tried_again() -> None:
    loader = Loader(broken={"second"})
    with pool("second", loader) as models:
        loader.gate.clear()
        jobs = [models.submit("second", wav(1, seed), WHOLE) for seed in range(2)]
        loader.gate.set()
        for job in jobs:
            with pytest.raises(EngineError, match="the model second could not be loaded"):
                job.result(PATIENCE)
        with pytest.raises(EngineError, match="tried again after 10 s"):
            models.submit("second", wav(1), WHOLE)
        assert loader.loads == ["second"]
        loader.broken.clear()
        models._models["second"].retry_at = 0.0
        assert text(models, "second") and loader.loads == ["second", "second"]


def test_a_model_that_can_never_fit_ends_the_start() -> None:
    message = r"second takes about 100 MB beside the 100 MB of first.* raise models_memory"
    settings = Settings(model="first", models="second")
    with Transcriber(settings, engine=Recorder()) as default, pytest.raises(ConfigurationError, match=message):
        Models(default, estimate=lambda settings, precision: 100_000_000, budget=199_999_999)


def test_a_missing_checkpoint_ends_the_start(tmp_path: Path) -> None:
    settings = Settings(model="first", models="absent", models_dir=str(tmp_path), device="cpu")
    with Transcriber(settings, engine=Recorder()) as default, pytest.raises(ConfigurationError, match="no checkpoint at"):
        Models(default, estimate=lambda settings, precision: 0 if settings.model == "first" else estimate(settings, precision))


def test_waiting_requests_end_with_the_pool() -> None:
    loader = Loader()
    with pool("second,third", loader) as models:
        loader.gate.clear()
        jobs = [models.submit(name, wav(1), WHOLE) for name in ("second", "third")]
        wait_until(lambda: bool(loader.loads))
        closing = threading.Thread(target=models.close)
        closing.start()
        wait_until(lambda: models._closing)
        loader.gate.set()
        closing.join(PATIENCE)
        assert all(job.ended for job in jobs)
        assert loader.loads == ["second"], "what nobody gets any more is not loaded"
        with pytest.raises(Overloaded):
            models.submit("third", wav(1), WHOLE)


def test_limits_on_open_requests_hold_for_all_models_together() -> None:
    loader = Loader()
    with pool("second", loader, max_open_requests=2) as models:
        assert text(models, "second")
        loader.engines["second"].gate.clear()
        jobs = [models.submit("second", wav(1, seed), WHOLE) for seed in range(2)]
        assert models.default.open_requests == 2
        with pytest.raises(Overloaded):
            models.submit("first", wav(1), WHOLE)
        loader.engines["second"].gate.set()
        assert all(job.result(PATIENCE) for job in jobs)


def test_a_stall_of_any_model_counts_and_its_batch_gives_the_watchdog_more_time() -> None:
    loader = Loader()
    with pool("second", loader, stall_seconds=0.1) as models:
        health = Health(models.default, models.others)
        assert text(models, "second") and not health.is_stalled
        loader.engines["second"].gate.clear()
        job = models.submit("second", wav(1), WHOLE)
        wait_until(lambda: health.is_stalled)
        assert not health.gives_results and models.default.scheduler.stalled_seconds == 0.0
        assert health.longest_seconds >= 0.1 > models.default.scheduler.longest_seconds
        loader.engines["second"].gate.set()
        assert job.result(PATIENCE)
        wait_until(lambda: health.gives_results)


@pytest.mark.parametrize(
    ("asked", "name"),
    [*((name, "first") for name in ("", "whisper-1", "gpt-4o-transcribe", "first", "unheard-of")), ("openai/whisper-second", "second")],
)
def test_the_model_that_a_name_means(asked: str, name: str) -> None:
    with pool("first,second", Loader()) as models:
        assert models.choose(asked) == name
