"""Folders, lists and S3 as input and output of a batch; S3 is moto's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import batch
import boto3
import pytest
import storage
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from failures import RequestFailed
from moto import mock_aws
from pieces import Task, pieces_of
from storage import Recording, fetched, find_recordings, open_place

from tests.unit.doubles import wav
from whispercore.options import Options

FAKE = ("--engine", "fake", "--option", "vad_filter=false", "--quiet")


def kind_of(address: str) -> str:
    with pytest.raises(RequestFailed) as caught:
        find_recordings(address)
    return caught.value.kind


def test_lists_name_recordings_from_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.wav").write_bytes(b"a")
    (tmp_path / "b.wav").write_bytes(b"bb")
    (tmp_path / "in" / "list.txt").write_text(f"deep/a.wav\n\n{tmp_path}/b.wav\ndeep/../deep/a.wav\ngone.wav\n")
    found = find_recordings(str(tmp_path / "in" / "list.txt"))
    outside = str(tmp_path / "b.wav").lstrip("/")
    assert [(recording.name, recording.size) for recording in found] == sorted([("deep/a.wav", 1), ("gone.wav", -1), (outside, 2)])
    (tmp_path / "in" / "list.jsonl").write_text('{"audio": "deep/a.wav", "text": "A"}\n{"path": "../b.wav"}\n')
    assert [recording.name for recording in find_recordings(str(tmp_path / "in" / "list.jsonl"))] == sorted(["deep/a.wav", outside])


def test_two_recordings_of_the_same_name_are_an_error(s3: Any, tmp_path: Path) -> None:
    put(s3, day_a=b"a")
    (tmp_path / "list.txt").write_text("talks/day/a.wav\ns3://talks/day/a.wav\n")
    assert kind_of(str(tmp_path / "list.txt")) == "bad_list"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"a")
    (tmp_path / "closed").mkdir(mode=0)
    assert kind_of(str(tmp_path)) == "access_denied"


def test_an_error_while_listing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(folder: Path, onerror: Any) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied", str(folder / "closed")))
        yield from ()

    monkeypatch.setattr("os.walk", walk)
    assert kind_of(str(tmp_path)) == "access_denied"


def test_a_file_that_changes_meanwhile_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"a")
    [recording] = find_recordings(str(tmp_path))
    with pytest.raises(RequestFailed, match="is it still being uploaded") as caught, fetched(recording):
        path.write_bytes(b"ab")
    assert caught.value.kind == "changed"
    with pytest.raises(RequestFailed, match="is it still being uploaded"), fetched(recording):
        pass
    path.unlink()
    with pytest.raises(RequestFailed, match="there is no file"), fetched(recording):
        pass


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/a", "a//b", "./a"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestFailed, match="is no name for a file below"):
        open_place(str(tmp_path / "out")).write(name, b"")


# S3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    cached = storage._client  # a test may replace it
    cached.cache_clear()
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="talks")
        yield client
    cached.cache_clear()


def put(client: Any, **objects: bytes) -> None:
    for name, content in objects.items():
        client.put_object(Bucket="talks", Key=name.replace("_", "/", 1) + ".wav", Body=content)


def test_from_s3_to_s3(s3: Any) -> None:
    put(s3, day_a=wav(1), day_b=wav(1, seed=1), days_c=wav(1))
    s3.put_object(Bucket="talks", Key="day/notes.txt", Body=b"-")
    run = ["s3://talks/day", "s3://talks/out", "--format", "text", *FAKE]
    assert batch.main(run) == 0
    place = open_place("s3://talks/out/")
    assert place.names() == {"a.wav.txt", "b.wav.txt", "manifest.jsonl", "summary.json"}
    entries = [json.loads(line) for line in place.read("manifest.jsonl").splitlines()]
    etags = {item["Key"]: item["ETag"].strip('"') for item in s3.list_objects_v2(Bucket="talks")["Contents"]}
    assert {entry["audio"]: entry["version"] for entry in entries} == {
        f"s3://talks/day/{name}.wav": etags[f"day/{name}.wav"] for name in "ab"
    }
    put(s3, day_b=wav(2))
    assert batch.main(run) == 0
    summary = json.loads(place.read("summary.json"))
    assert (summary["done"], summary["skipped"]) == (1, 1)


def test_one_object_and_a_list(s3: Any, tmp_path: Path) -> None:
    put(s3, day_a=b"a")
    assert [recording.name for recording in find_recordings("s3://talks/day/a.wav")] == ["a.wav"]
    (tmp_path / "list.txt").write_text("s3://talks/day/a.wav\ns3://talks/day/gone.wav\n")
    found = find_recordings(str(tmp_path / "list.txt"))
    assert [(recording.name, recording.size) for recording in found] == [("talks/day/a.wav", 1), ("talks/day/gone.wav", -1)]
    with pytest.raises(RequestFailed) as caught, fetched(found[1]):
        pass
    assert caught.value.kind == "missing"


def test_an_object_that_changes_meanwhile_has_failed(s3: Any) -> None:
    put(s3, day_a=b"a")
    [recording] = find_recordings("s3://talks/day")
    put(s3, day_a=b"other")
    with pytest.raises(RequestFailed, match="is it still being uploaded") as caught, fetched(recording):
        pass
    assert caught.value.kind == "changed"


def test_a_missing_bucket_is_one_line(s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.wav").write_bytes(wav(1))
    for arguments in (["s3://nothing/day", str(tmp_path / "out")], [str(tmp_path), "s3://nothing/out"]):
        assert batch.main([*arguments, *FAKE]) == 1
        err = capsys.readouterr().err
        assert "there is no such bucket (NoSuchBucket)" in err and err.count("\n") == 1


class Failing:
    """A client whose requests fail with the next error of a list, and then succeed."""

    def __init__(self, client: Any, *errors: Exception) -> None:
        self._client, self._errors = client, list(errors)

    def __getattr__(self, name: str) -> Any:
        if self._errors:
            raise self._errors.pop(0)
        return getattr(self._client, name)


def answer(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": f"said {code}"}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (answer("AccessDenied"), "access_denied", "said AccessDenied"),
        (NoCredentialsError(), "access_denied", "no keys for S3"),
        (answer("SlowDown"), "connection", "said SlowDown"),
        (EndpointConnectionError(endpoint_url="http://s3"), "connection", "Could not connect"),
    ],
)
def test_failures_of_s3_by_kind(s3: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, message: str) -> None:
    monkeypatch.setattr(storage, "_client", lambda: Failing(s3, *[error] * 9))
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0.0)
    with pytest.raises(RequestFailed, match=message) as caught, fetched(Recording("a.wav", "s3://talks/a.wav", 1, "")):
        pass
    assert caught.value.kind == kind


def test_a_broken_download_is_tried_again(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, day_a=b"sound")
    failing = Failing(s3, *[ReadTimeoutError(endpoint_url="http://s3")] * 2)
    monkeypatch.setattr(storage, "_client", lambda: failing)
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0.0)
    with fetched(Recording("a.wav", "s3://talks/day/a.wav", 5, "")) as path:
        assert path.read_bytes() == b"sound"


def test_a_reading_task_hands_over_what_it_has_fetched(s3: Any) -> None:
    put(s3, day_a=wav(1), day_b=wav(100), day_c=wav(1))
    a, b, c = (Task(recording) for recording in find_recordings("s3://talks/day"))
    c = replace(c, recording=replace(c.recording, version="other"))
    [short], parts, [failed] = (list(pieces_of(task, Options(vad_filter=False), 40.0)) for task in (a, b, c))
    assert short.source == wav(1)
    assert [part.source.number for part in parts] == [0, 1, 2, 3]
    assert failed.failure.kind == "changed"
    [again] = pieces_of(replace(b, numbers=frozenset({2})), Options(vad_filter=False), 40.0)
    assert again.source.number == 2
