"""The mailbox as TorchServe would drive it: every open request in every call, letters when there is news."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.unit.doubles import PATIENCE, Recorder, wav
from whispercore.engines.fake import FakeEngine
from whispercore.mailbox import EARLY_FIRST_CHUNK_BYTES, LONGEST_WAIT, Letter, Mailbox, Post
from whispercore.settings import Settings
from whispercore.transcriber import Transcriber

OPTIONS = {"vad_filter": b"false"}


@pytest.fixture
def engine() -> Recorder:
    return Recorder()


@pytest.fixture
def mailbox(engine: Recorder) -> Iterator[Mailbox]:
    with Transcriber(Settings(max_audio_bytes=8 * 1024 * 1024), engine=engine) as transcriber:
        yield Mailbox(transcriber)


def post(id: str, audio: bytes, **headers: str) -> Post:
    return Post(id, {"file": bytearray(audio), **OPTIONS}, headers)


def drive(mailbox: Mailbox, posts: list[Post]) -> dict[str, list[Letter]]:
    """Call until every request has had its last letter, as the server does; what was answered is not posted again."""
    letters: dict[str, list[Letter]] = {post.id: [] for post in posts}
    deadline = time.monotonic() + PATIENCE
    while posts and time.monotonic() < deadline:
        for id, letter in mailbox.exchange(posts).items():
            letters[id].append(letter)
        posts = [post for post in posts if not letters[post.id] or letters[post.id][-1].last is False]
    assert not posts and len(mailbox) == 0
    return letters


def test_each_request_gets_its_own_answer(mailbox: Mailbox) -> None:
    letters = drive(mailbox, [post(str(seed), wav(2, seed)) for seed in range(8)] + [post("bad", b"nothing to hear")])
    texts = {json.loads(letters[str(seed)][0].payload)["text"] for seed in range(8)}
    assert len(texts) == 8
    assert all(len(letters[str(seed)]) == 1 and letters[str(seed)][0].last is None for seed in range(8))
    refusal = letters["bad"][0]
    assert refusal.status == 415 and json.loads(refusal.payload)["error"].keys() == {"message", "type", "param", "code"}


def test_the_request_id_comes_back(mailbox: Mailbox) -> None:
    letters = drive(mailbox, [post("a", wav(1), **{"X-Request-Id": "abc-1"}), post("b", wav(1)), post("c", b"", **{"x-request-id": "c-3"})])
    assert letters["a"][0].request_id == "abc-1" and letters["c"][0].request_id == "c-3"
    assert len(letters["b"][0].request_id) == 32


def test_a_large_body_gets_an_empty_first_chunk_as_soon_as_it_proves_readable(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    large = wav(EARLY_FIRST_CHUNK_BYTES / 32_000 + 5)
    posts = [post("large", large), post("not audio", bytes(2 * EARLY_FIRST_CHUNK_BYTES)), post("small", wav(1))]
    first: dict[str, Letter] = {}
    deadline = time.monotonic() + PATIENCE
    while len(first) < 2 and time.monotonic() < deadline:
        first |= mailbox.exchange([post for post in posts if post.id != "not audio" or post.id not in first])
    assert first.keys() == {"large", "not audio"}
    assert first["large"].last is False and first["large"].status == 200 and first["large"].payload == b""
    assert first["not audio"].last is None and first["not audio"].status == 415
    engine.gate.set()
    rest = drive(mailbox, [Post("large", {}, {}), posts[2]])
    assert rest["large"][-1].last is True and json.loads(rest["large"][-1].payload)["text"]
    assert rest["small"][-1].last is None


def test_a_begun_reply_gets_empty_chunks_so_that_the_server_notices_who_has_gone(
    mailbox: Mailbox, engine: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whispercore.mailbox.KNOCK_SECONDS", 0.05)
    engine.gate.clear()
    large = post("large", wav(EARLY_FIRST_CHUNK_BYTES / 32_000 + 5))
    chunks: list[Letter] = []
    deadline = time.monotonic() + PATIENCE
    while len(chunks) < 3 and time.monotonic() < deadline:
        chunks += mailbox.exchange([large]).values()
    assert [(chunk.last, chunk.payload) for chunk in chunks] == [(False, b"")] * 3
    engine.gate.set()
    assert drive(mailbox, [large])["large"][-1].last is True


def test_who_is_not_posted_any_more_is_cancelled(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    mailbox.exchange([post("stays", wav(1)), post("leaves", wav(200))])
    assert len(mailbox) == 2
    mailbox.exchange([post("stays", wav(1))])
    assert len(mailbox) == 1 and mailbox.transcriber.open_requests == 1
    engine.gate.set()
    assert drive(mailbox, [post("stays", wav(1))])["stays"][0].status == 200


def test_a_call_returns_within_its_patience_when_there_is_no_news(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    mailbox.exchange([post("waits", wav(1))])
    begun = time.monotonic()
    assert mailbox.exchange([post("waits", wav(1))]) == {}
    assert time.monotonic() - begun < LONGEST_WAIT + 1
    engine.gate.set()


def test_an_engine_that_fails_is_a_500_of_its_own_request() -> None:
    engine = FakeEngine(fails=lambda window: len(window.samples) == 16_000)
    with Transcriber(Settings(), engine=engine) as transcriber:
        letters = drive(Mailbox(transcriber), [post("fails", wav(1)), post("works", wav(2))])
    assert letters["fails"][0].status == 500 and letters["works"][0].status == 200


def test_a_closing_mailbox_finishes_what_is_open_and_takes_nothing_new(mailbox: Mailbox, engine: Recorder) -> None:
    engine.gate.clear()
    assert mailbox.exchange([post("early", wav(1))]) == {}
    mailbox.closing = True
    refusal = mailbox.exchange([post("early", wav(1)), post("late", wav(1))])["late"]
    assert refusal.status == 503 and json.loads(refusal.payload)["error"]["code"] == "stopping"
    engine.gate.set()
    assert drive(mailbox, [post("early", wav(1))])["early"][0].status == 200


def test_too_many_bytes_are_a_413(mailbox: Mailbox) -> None:
    assert drive(mailbox, [post("big", bytes(9 * 1024 * 1024))])["big"][0].status == 413


def test_the_list_of_models(mailbox: Mailbox) -> None:
    letter = drive(mailbox, [Post("models", {}, {"url_path": "v1/models"})])["models"][0]
    assert json.loads(letter.payload)["data"][0]["id"] == "nano"
