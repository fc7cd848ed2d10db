"""API keys and their limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.keys import Key, Keys, digest_of, new_key, read_keys
from gateway.refusals import RateLimited, Unauthorized
from gateway.usage import Usage
from tests.unit.doubles import Recorder, wav
from tests.unit.gateway.conftest import Served, serve, wait_for
from whispercore.errors import ConfigurationError

AUDIO, PLAIN = wav(1.0), {"vad_filter": "false"}


def write(file: Path, *entries: str) -> Path:
    file.write_text("keys:\n" + "".join(f"  - {entry}\n" for entry in entries))
    return file


def entry(name: str, key: str, **limits: float) -> str:
    more = "".join(f", {limit}: {value}" for limit, value in limits.items())
    return f'{{name: {name}, sha256: "{digest_of(key)}"{more}}}'


def ask(served: Served, key: str | None, path: str = "/v1/audio/transcriptions") -> Any:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return served.client.post(path, files={"file": AUDIO}, data=PLAIN, headers=headers)


def test_a_key_is_known_by_its_hash(tmp_path: Path) -> None:
    key = new_key()
    keys = Keys(write(tmp_path / "keys.yaml", entry("alice", key), entry("bob", new_key())))
    assert keys.check(f"Bearer {key}").name == keys.check(f"bearer  {key} ").name == "alice"
    for authorization in ("", "Bearer", f"Basic {key}", "Bearer wrong", f"Bearer {key}x", "Bearer \udcff"):
        with pytest.raises(Unauthorized):
            keys.check(authorization)


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    first, second = new_key(), new_key()
    file = write(tmp_path / "keys.yaml", entry("alice", first))
    keys = Keys(file)
    os.utime(write(file, entry("bob", second)), ns=(1, 1))
    assert keys.reload() == "" and keys.check(f"Bearer {second}").name == "bob"
    os.utime(write(file, "{name: x}"), ns=(2, 2))
    assert "sha256" in keys.reload() and keys.check(f"Bearer {second}").name == "bob"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "list `keys`"),
        ("keys: [x]", "no mapping"),
        ("keys: [{name: a, sha256: b}]", "64 hexadecimal"),
        ("keys: [{name: 'a b'}]", "name must be"),
        *((f"keys: [{{name: {name}, sha256: {'a' * 64}}}]", "name must be") for name in ("007", "yes", "1.5", "null", "[a]")),
        (f"keys: [{{name: a, sha256: {'1' * 64}}}]", "in quotes"),
        *((f"keys: {entries}", "must be a list") for entries in ("5", "{a: b}", "true", "text")),
        (f"keys: [{{name: a, sha256: {'a' * 64}, limit: 3}}]", "unknown field limit"),
        (f"keys: [{{name: a, sha256: {'a' * 64}, open_requests: -1}}]", "at least 0"),
        (f"keys: [{{name: a, sha256: {'a' * 64}}}, {{name: a, sha256: {'b' * 64}}}]", "two keys"),
        ("keys: [", "must be YAML"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_of_its_fault(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=says):
        read_keys(file)


def test_audio_of_a_day_is_remembered_over_a_restart(tmp_path: Path) -> None:
    key = Key(name="alice", audio_seconds_per_day=10)
    usage = Usage(tmp_path / "usage.sqlite")
    with usage.request(key) as headers:
        assert headers["x-ratelimit-remaining-audio-seconds"] == "10"
    usage.add_audio(key, 4)
    usage.close()
    usage = Usage(tmp_path / "usage.sqlite")
    usage.add_audio(key, 7)
    assert usage.audio_seconds(key) == 11
    with pytest.raises(RateLimited) as caught, usage.request(key):
        pass
    assert caught.value.code == "insufficient_quota" and 0 < caught.value.retry_after <= 86400


def test_audio_that_cannot_be_counted_does_not_cost_the_transcript(tmp_path: Path) -> None:
    usage = Usage(tmp_path / "usage.sqlite")
    usage._database.execute("DROP TABLE usage")
    usage.add_audio(Key(name="alice"), 1.0)
    usage.close()


def test_open_requests_are_counted_down_also_after_an_error(tmp_path: Path) -> None:
    key, usage = Key(name="alice", open_requests=1), Usage(tmp_path / "usage.sqlite")
    with pytest.raises(ZeroDivisionError), usage.request(key):
        with pytest.raises(RateLimited), usage.request(key):
            pass
        raise ZeroDivisionError
    with usage.request(key):
        pass


def test_requests_need_a_key_and_keep_to_its_limits(tmp_path: Path) -> None:
    key, other = new_key(), new_key()
    file = write(tmp_path / "keys.yaml", entry("alice", key, requests_per_minute=3), entry("bob", other, audio_seconds_per_day=1))
    with serve(tmp_path, keys_file=file) as served:
        for presented in (None, "wrong"):
            reply = ask(served, presented)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert reply.json()["error"]["code"] in ("missing_api_key", "invalid_api_key")
        assert ask(served, None, "/v1/jobs").status_code == 401 and served.client.get("/v1/models").status_code == 401
        assert served.client.get("/health/ready").status_code == served.client.get("/metrics").status_code == 200
        left = [ask(served, key).headers["x-ratelimit-remaining-requests"] for _ in range(3)]
        assert left == ["2", "1", "0"]
        refused = ask(served, key)
        assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) <= 60
        assert ask(served, other).status_code == 200 and ask(served, other).status_code == 429, "bob has used up his second of audio"
        assert 'whisper_gateway_audio_seconds_total{key="bob"} 1.0' in served.client.get("/metrics").text


def test_a_key_is_limited_in_open_requests(tmp_path: Path) -> None:
    key, engine = new_key(), Recorder()
    engine.gate.clear()
    with serve(tmp_path, engine=engine, keys_file=write(tmp_path / "keys.yaml", entry("alice", key, open_requests=1))) as served:
        headers = {"authorization": f"Bearer {key}"}
        job = served.client.post("/v1/jobs", files={"file": AUDIO}, data=PLAIN, headers=headers).json()
        stream = served.client.build_request(
            "POST", "/predictions/whisper", params={**PLAIN, "stream": "true"}, content=AUDIO, headers=headers
        )
        opened = served.client.send(stream, stream=True)
        assert ask(served, key).status_code == 429
        opened.close()
        engine.gate.set()
        wait_for(lambda: ask(served, key).status_code == 200, "the place is free again")
        wait_for(lambda: served.client.get(f"/v1/jobs/{job['id']}", headers=headers).json()["status"] == "completed", "the job's end")


def test_without_keys_only_this_machine_is_listened_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="WHISPER_API_KEYS_FILE"), serve(tmp_path, host="0.0.0.0"):
        pass
