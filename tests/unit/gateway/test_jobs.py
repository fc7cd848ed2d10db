"""Jobs: accepted once, done once, told once, whatever happens in between."""

from __future__ import annotations

import errno
import io
import json
import sqlite3
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import openai
import pytest

from gateway.app import create_app
from gateway.backend import Call, Reply
from gateway.configuration import Configuration
from gateway.inprocess import InProcess
from gateway.jobs.job import Job
from gateway.jobs.routes import _stem
from gateway.jobs.runner import MAX_ATTEMPTS
from gateway.jobs.store import JobStore
from gateway.jobs.webhook import DELAYS, next_delivery, signed_headers
from gateway.refusals import error_reply
from tests.unit.doubles import Recorder, serving, wav
from tests.unit.gateway.conftest import CORE, Served, serve, wait_for
from whispercore.errors import ConfigurationError, Overloaded
from whispercore.serving.transcriber import Transcriber

AUDIO, PLAIN = wav(8.0), {"vad_filter": "false"}
SECRET = "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"


class Listener(BaseHTTPRequestHandler):
    """Receives webhooks; the first `failures` calls get a 500."""

    calls: ClassVar[list[tuple[dict[str, str], bytes]]] = []
    failures: ClassVar[int] = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(500 if len(self.calls) <= Listener.failures else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[str]:
    Listener.calls, Listener.failures = [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    with serving(server):
        yield f"http://localhost:{server.server_port}/hook"


def create(served: Served, **fields: str) -> dict[str, Any]:
    reply = served.client.post("/v1/jobs", files={"file": ("talk.wav", AUDIO)}, data={**PLAIN, **fields})
    assert reply.status_code == 202, reply.text
    job: dict[str, Any] = reply.json()
    return job


def state(served: Served, job: dict[str, Any]) -> str:
    return str(served.client.get(f"/v1/jobs/{job['id']}").json().get("status"))


def wait_until(served: Served, job: dict[str, Any], status: str) -> None:
    wait_for(lambda: state(served, job) in (status, "completed", "failed", "cancelled"), f"status {status}")
    found = served.client.get(f"/v1/jobs/{job['id']}").json()
    assert found["status"] == status, found["error"]


def test_a_job_has_the_transcript_of_a_request_in_every_format(served: Served) -> None:
    job = create(served, word_timestamps="true")
    wait_until(served, job, "completed")
    for options in (
        {"response_format": "json"},
        {"response_format": "text"},
        {"response_format": "srt", "max_line_width": "20"},
        {"response_format": "vtt", "highlight_words": "true"},
        {"response_format": "tsv"},
        {"response_format": "verbose_json", "timestamp_granularities[]": "word"},
    ):
        stored = served.client.get(f"/v1/jobs/{job['id']}/result", params=options)
        posted = served.client.post("/predictions/whisper", files={"file": AUDIO}, data={**PLAIN, "word_timestamps": "true", **options})
        assert stored.headers["content-type"] == posted.headers["content-type"]
        if "json" in options["response_format"]:
            assert stored.json() == posted.json(), options
        else:
            assert stored.text == posted.text, options
    done = served.client.get(f"/v1/jobs/{job['id']}").json()
    assert done["progress"] == {"seconds": 8.0, "duration": 8.0} and done["filename"] == "talk.wav"


def test_a_job_keeps_the_form_of_reply_that_it_was_created_with(served: Served) -> None:
    job = create(served, response_format="srt")
    wait_until(served, job, "completed")
    assert served.client.get(f"/v1/jobs/{job['id']}/result").text.startswith("1\n00:00:")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"data": {}}, 400),
        ({"files": {"file": b""}}, 400),
        ({"files": {"file": AUDIO}, "data": {"lang": "en"}}, 400),
        ({"files": {"file": AUDIO}, "data": {"include[]": "logprobs"}}, 400),
        ({"files": {"file": AUDIO}, "data": {"webhook": "file:///x"}}, 400),
        ({"files": {"file": AUDIO}, "data": {"url": "http://a.example/b"}}, 400),
        ({"json": {"audio": "?"}}, 400),
        ({"json": ["a"]}, 400),
        ({"json": {"url": 3}}, 400),
    ],
)
def test_what_is_refused_at_once(served: Served, arguments: dict[str, Any], status: int) -> None:
    reply = served.client.post("/v1/jobs", **arguments)
    assert reply.status_code == status and reply.json()["error"]["message"], reply.text


def test_a_file_that_is_no_audio_fails_its_job_only(served: Served) -> None:
    job = served.client.post("/v1/jobs", files={"file": b"no sound"}).json()
    wait_until(served, job, "failed")
    assert served.client.get(f"/v1/jobs/{job['id']}").json()["error"]["code"] == "unsupported_audio"
    assert served.client.get(f"/v1/jobs/{job['id']}/result").status_code == 409


def test_late_options_and_unknown_jobs(served: Served) -> None:
    job = create(served)
    wait_until(served, job, "completed")
    url = f"/v1/jobs/{job['id']}/result"
    assert "when the job is created" in served.client.get(url, params={"language": "en"}).json()["error"]["message"]
    assert served.client.get(url, params={"response_format": "doc"}).status_code == 400
    assert "word_timestamps=true" in served.client.get(url, params={"response_format": "srt", "highlight_words": "true"}).text
    assert served.client.get("/v1/jobs/job_0").status_code == served.client.get("/v1/batches/batch_0").status_code == 404


def test_lists_have_pages(served: Served) -> None:
    jobs = [create(served)["id"] for _ in range(3)]
    page = served.client.get("/v1/jobs", params={"limit": 2}).json()
    rest = served.client.get("/v1/jobs", params={"limit": 1, "after": page["data"][-1]["id"]}).json()
    assert [job["id"] for job in (*page["data"], *rest["data"])] == jobs[::-1] and page["has_more"]


def test_pages_do_not_lose_jobs_of_a_batch(served: Served) -> None:
    """They were created at one time."""
    batch = served.client.post("/v1/jobs", files=[("file", (f"{n}.wav", AUDIO)) for n in range(4)], data=PLAIN).json()
    found: list[str] = []
    while len(found) < 4:
        after = {"after": found[-1]} if found else {}
        page = served.client.get("/v1/jobs", params={"limit": 1, **after}).json()["data"]
        found += [job["id"] for job in page]
    assert found == [job["id"] for job in batch["jobs"]][::-1]


class Busy(InProcess):
    """Has no room for the first requests."""

    refused: ClassVar[int] = 0

    async def send(self, call: Call) -> Reply:
        Busy.refused += 1
        if Busy.refused <= MAX_ATTEMPTS + 2:
            return error_reply(Overloaded("no room", retry_after=1))
        return await super().send(call)


def test_a_job_outlives_a_back_end_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is no attempt: a worker takes minutes to start again."""
    Busy.refused = 0
    monkeypatch.setattr("gateway.jobs.runner.LONGEST_RETRY_SECONDS", 0.01)
    with serve(tmp_path, backend=Busy(lambda: Transcriber(CORE, engine=Recorder()))) as served:
        job = create(served)
        wait_until(served, job, "completed")
        assert served.client.get(f"/v1/jobs/{job['id']}").json()["attempts"] == 1


def test_jobs_that_cannot_be_stored_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with serve(tmp_path) as served:
        with monkeypatch.context() as patch:
            patch.setattr("gateway.jobs.routes.shutil.move", fail)
            reply = served.client.post("/v1/jobs", files={"file": AUDIO})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "storage_full")
        assert not [path for path in (tmp_path / "data" / "jobs").iterdir() if path.is_dir()] and not list((tmp_path / "spool").iterdir())
        wait_until(served, create(served), "completed")


def test_a_failed_insertion_is_rolled_back(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    with pytest.raises(sqlite3.Error):
        store.add([Job(id="a", owner="a"), Job(id="a", owner="a")])
    assert store.get("a") is None
    store.add([Job(id="b", owner="a")])
    assert store.get("b")


def test_delete_cancels_what_runs_and_removes_what_is_over(tmp_path: Path) -> None:
    engine = Recorder()
    engine.gate.clear()
    with serve(tmp_path, engine=engine, max_running_jobs=1) as served:
        running, queued = create(served), create(served)
        wait_until(served, running, "running")
        assert served.client.get(f"/v1/jobs/{queued['id']}").json()["place_in_queue"] == 0
        for job in (running, queued):
            assert served.client.delete(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
        wait_for(lambda: served.metric("whisper_open_requests") == 0, "the work has ended")
        assert served.client.delete(f"/v1/jobs/{running['id']}").json()["deleted"]
        assert state(served, running) == "None" and not (tmp_path / "data" / "jobs" / running["id"]).exists()
        engine.gate.set()
        wait_until(served, create(served), "completed")


def test_a_batch_is_one_zip(served: Served) -> None:
    files = [("file", ("a.wav", AUDIO)), ("file", ("b.txt", b"no sound")), ("file", ("c.wav", wav(2.0, seed=2)))]
    batch = served.client.post("/v1/jobs", files=files, data=PLAIN).json()
    assert batch["object"] == "batch" and len(batch["jobs"]) == 3
    wait_for(lambda: served.client.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed", "the batch")
    reply = served.client.get(f"/v1/batches/{batch['id']}/result", params={"response_format": "text"})
    archive = zipfile.ZipFile(io.BytesIO(reply.content))
    assert archive.namelist() == ["0001-a.txt", "0003-c.txt", "errors.json"]
    [error] = json.loads(archive.read("errors.json"))
    assert error["filename"] == "b.txt" and error["error"]["code"] == "unsupported_audio"
    assert served.client.get(f"/v1/batches/{batch['id']}/result", params={"nonsense": "1"}).status_code == 400
    wait_for(lambda: not list(served.app.state.gateway.spool.folder.iterdir()), "the zip file is removed, also after an error")


@pytest.mark.parametrize("name", ["../../a.wav", "..\\..\\a.wav", "c:\\b\\a.wav", "a\0b.wav", "\n.wav", "\N{BOAR}" * 255, "", ".."])
def test_names_in_a_zip_stay_in_its_folder(name: str) -> None:
    stem = _stem(Job(id="job_1", owner="anyone", filename=name))
    assert stem.isprintable() and not set(stem) & set("/\\:") and 0 < len(stem.encode()) < 245


def test_a_restart_loses_nothing_and_does_nothing_twice(tmp_path: Path, listener: str) -> None:
    """The first gateway stops while one job runs and one waits; the second one completes both, and tells each once."""
    engine = Recorder()
    engine.gate.clear()
    options = {"private_hosts": ("localhost",), "max_running_jobs": 1}
    with serve(tmp_path, engine=engine, **options) as served:
        jobs = [create(served, webhook=listener) for _ in range(2)]
        wait_until(served, jobs[0], "running")
    assert Listener.calls == []
    with serve(tmp_path, **options) as served:
        for job in jobs:
            wait_until(served, job, "completed")
        wait_for(lambda: len(Listener.calls) == 2, "the webhooks")
        assert served.client.get(f"/v1/jobs/{jobs[0]['id']}").json()["attempts"] == 2
    with serve(tmp_path, **options) as served:
        assert served.client.get(f"/v1/jobs/{jobs[0]['id']}/result").status_code == 200
    assert sorted(json.loads(body)["data"]["id"] for _, body in Listener.calls) == sorted(job["id"] for job in jobs)


def test_openais_client_can_verify_a_webhook(tmp_path: Path, listener: str) -> None:
    with serve(tmp_path, private_hosts=("localhost",), webhook_secret=SECRET) as served:
        job = create(served, webhook=listener)
        wait_for(lambda: bool(Listener.calls), "the webhook")
    [(headers, body)] = Listener.calls
    event = json.loads(body)
    assert event["type"] == "transcription.completed", event
    webhooks = openai.OpenAI(api_key="none", webhook_secret=SECRET).webhooks
    webhooks.verify_signature(body, headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        webhooks.verify_signature(body.replace(b"completed", b"cancelled"), headers)
    assert event["data"]["id"] == job["id"] and event["id"] == headers["webhook-id"]


def test_a_webhook_is_called_again_with_the_same_id(tmp_path: Path, listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.jobs.webhook.DELAYS", (0.01, 0.01))
    monkeypatch.setattr("gateway.jobs.runner.IDLE_SECONDS", 0.05)
    Listener.failures = 2
    with serve(tmp_path, private_hosts=("localhost",)) as served:
        create(served, webhook=listener)
        wait_for(lambda: len(Listener.calls) == 3, "the third call")
    assert len({headers.get("webhook-id", json.loads(body)["id"]) for headers, body in Listener.calls}) == 1


def test_a_private_webhook_is_not_called(tmp_path: Path, listener: str) -> None:
    with serve(tmp_path) as served:
        wait_until(served, create(served, webhook=listener), "completed")
        wait_for(lambda: _deliveries(tmp_path) == 1, "the failed delivery")
    assert Listener.calls == []


def _deliveries(folder: Path) -> int:
    with sqlite3.connect(folder / "data" / "jobs" / "jobs.sqlite") as database:
        return int(database.execute("SELECT MAX(deliveries) FROM jobs").fetchone()[0])


def test_deliveries_are_given_up_at_last() -> None:
    assert [next_delivery(number, 0.0) for number in range(1, len(DELAYS) + 2)] == [*DELAYS, 0.0]


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's reference implementation."""
    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1614265330)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_full_store_refuses_more(tmp_path: Path) -> None:
    engine = Recorder()
    engine.gate.clear()
    with serve(tmp_path, engine=engine, max_job_bytes=len(AUDIO) + 10) as served:
        create(served)
        reply = served.client.post("/v1/jobs", files={"file": AUDIO})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "storage_full") and reply.headers["retry-after"]
        engine.gate.set()


def test_the_store_takes_turns_between_clients(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    store.add(Job(id=f"a{number}", owner="a", created=float(number)) for number in range(3))
    store.add([Job(id="b0", owner="b", created=10.0)])
    taken = [store.take() for _ in range(5)]
    assert [job.id for job in taken if job] == ["a0", "b0", "a1", "a2"]


def test_old_jobs_are_removed_and_those_with_a_call_to_make_are_not(tmp_path: Path) -> None:
    store, now = JobStore(tmp_path), time.time()
    jobs = [
        Job(id="old", owner="a", state="completed", ended=now - 100),
        Job(id="told", owner="a", state="completed", ended=now - 100, next_delivery=now + 5),
        Job(id="new", owner="a", state="completed", ended=now),
        Job(id="waits", owner="a"),
    ]
    for job in jobs:
        store.folder_of(job).mkdir()
    store.add(jobs)
    store.expire(now - 50)
    assert [job.id for job in jobs if store.get(job.id)] == ["told", "new", "waits"]
    assert not store.folder_of(jobs[0]).exists()


def test_a_folder_of_data_has_one_gateway(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        upload = served.app.state.gateway.spool.new_path()
        upload.write_text("an upload")
        with pytest.raises(ConfigurationError, match="another gateway"):
            create_app(served.app.state.gateway.configuration, InProcess(lambda: Transcriber(CORE, engine=Recorder())))
        assert upload.exists(), "the uploads of the first gateway stay"


def test_a_folder_of_data_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    configuration = Configuration(spool=tmp_path / "spool", data=tmp_path / "file" / "data")
    with pytest.raises(ConfigurationError, match="WHISPER_DATA_DIR"):
        create_app(configuration, InProcess(lambda: Transcriber(CORE, engine=Recorder())))


def test_what_a_crash_leaves_is_cleared(tmp_path: Path) -> None:
    """A folder without a job was never accepted; a job that ran is queued again."""
    store = JobStore(tmp_path)
    store.add([Job(id="a", owner="a")])
    store.folder_of(Job(id="a", owner="a")).mkdir()
    (tmp_path / "job_half").mkdir()
    taken = store.take()
    assert taken and taken.state == "running"
    store.close()
    again = JobStore(tmp_path)
    assert not (tmp_path / "job_half").exists() and again.get("a").state == "queued"
