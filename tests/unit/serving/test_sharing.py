"""Which requests are accepted and which share a job, without a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.doubles import PATIENCE, Recorder, wav
from whispercore.api.request import Request
from whispercore.errors import Overloaded, TooLarge
from whispercore.serving.models import Models
from whispercore.serving.sharing import SharedJobs, wants_own_job
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings


@pytest.fixture
def engine() -> Recorder:
    return Recorder()


@pytest.fixture
def jobs(engine: Recorder) -> Iterator[SharedJobs]:
    engine.gate.clear()
    with Transcriber(Settings(max_audio_bytes=1024 * 1024), engine=engine) as transcriber:
        yield SharedJobs(Models(transcriber))
        engine.gate.set()


def upload(jobs: SharedJobs, audio: bytes, **fields: str) -> Request:
    return jobs.check({"file": bytearray(audio), "vad_filter": b"false"} | fields, {})


def test_an_equal_request_joins_the_job_and_its_audio_is_freed(jobs: SharedJobs, engine: Recorder) -> None:
    first, second = (jobs.begin(upload(jobs, wav(2))) for _ in range(2))
    assert (first.joined, second.joined, jobs.shared) == (False, True, 1)
    assert second.job is first.job and second.request.audio is first.request.audio
    engine.gate.set()
    assert second.job.result(PATIENCE).text and len(engine.windows) == 1


def test_another_language_or_recording_is_another_job(jobs: SharedJobs) -> None:
    requests = [upload(jobs, wav(2)), upload(jobs, wav(2), language="en"), upload(jobs, wav(2, seed=1))]
    assert len({jobs.begin(request).job for request in requests}) == 3


def test_a_request_may_stay_alone(jobs: SharedJobs) -> None:
    assert not any(jobs.begin(upload(jobs, wav(2)), alone=True).joined for _ in range(2))
    assert wants_own_job({"Cache-Control": "no-cache, no-store"}) and not wants_own_job({"cache-control": "max-age=0"})


def test_the_job_is_cancelled_when_its_last_request_leaves(jobs: SharedJobs) -> None:
    first, second = (jobs.begin(upload(jobs, wav(2))) for _ in range(2))
    jobs.detach(first)
    assert not second.job.ended
    jobs.detach(second)
    assert second.job.ended and jobs.models.default.open_requests == 0
    assert not jobs.begin(upload(jobs, wav(2))).joined, "a cancelled job is not shared"


def test_new_requests_are_refused_while_closing(jobs: SharedJobs) -> None:
    early = jobs.begin(upload(jobs, wav(1)))
    jobs.closing = True
    with pytest.raises(Overloaded) as refused:
        upload(jobs, wav(1))
    assert refused.value.code == "stopping" and not early.job.ended


def test_more_bytes_than_the_limit_are_refused(jobs: SharedJobs) -> None:
    with pytest.raises(TooLarge):
        upload(jobs, bytes(1024 * 1024 + 1))


def test_clients_do_not_share_jobs(jobs: SharedJobs) -> None:
    first, other, again = (jobs.begin(upload(jobs, wav(2)), client=client) for client in ("a", "b", "a"))
    assert other.job is not first.job and again.job is first.job


def test_requests_that_share_a_job_count_for_their_clients_share(engine: Recorder) -> None:
    engine.gate.clear()
    with Transcriber(Settings(max_open_requests=4), engine=engine) as transcriber:
        jobs = SharedJobs(Models(transcriber))
        for _ in range(2):
            jobs.begin(upload(jobs, wav(2)), client="a")
        with pytest.raises(Overloaded) as refused:
            jobs.begin(upload(jobs, wav(2)), client="a")
        assert refused.value.code == "client_overloaded" and transcriber.open_requests == 1
        jobs.begin(upload(jobs, wav(2)), client="b")
        engine.gate.set()
