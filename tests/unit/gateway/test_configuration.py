"""The gateway's settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.configuration import Configuration
from tests.unit.doubles import wav
from tests.unit.gateway.conftest import serve
from whispercore.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[3]


def test_the_defaults_listen_on_this_machine_and_fetch_urls() -> None:
    configuration = Configuration.load({})
    assert (configuration.host, configuration.port, configuration.is_local) == ("127.0.0.1", 8000, True)
    assert configuration.allow_urls and configuration.keys_file is None and configuration.torchserve == ""
    assert configuration.max_body_bytes > 150 * 2**20


def test_a_published_gateway_fetches_none() -> None:
    published = Configuration.load({"WHISPER_GATEWAY_ADDRESS": "http://0.0.0.0:80"})
    assert (published.host, published.port, published.allow_urls) == ("0.0.0.0", 80, False)


def test_lists_and_numbers() -> None:
    configuration = Configuration.load({"WHISPER_CORS_ORIGINS": "https://a.example, https://b.example,", "WHISPER_JOB_DAYS": "0.5"})
    assert configuration.cors_origins == ("https://a.example", "https://b.example") and configuration.job_days == 0.5


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WHISPER_GATEWAY_ADDRESS", "localhost:8000"),
        ("WHISPER_GATEWAY_ADDRESS", "http://[::1"),
        ("WHISPER_GATEWAY_ADDRESS", "http://127.0.0.1:port"),
        ("WHISPER_ALLOW_URLS", "maybe"),
        ("WHISPER_JOB_DAYS", "-1"),
        ("WHISPER_MAX_JOB_BYTES", "20G"),
    ],
)
def test_bad_values_are_told_by_their_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        Configuration.load({variable: value})


def test_the_limit_of_uploads_follows_that_of_the_core() -> None:
    assert Configuration.load({"WHISPER_MAX_AUDIO_BYTES": str(400 * 2**20)}).max_body_bytes > 400 * 2**20


def test_pages_of_named_origins_only_may_use_the_api(tmp_path: Path) -> None:
    with serve(tmp_path, cors_origins=("https://app.example",)) as served:
        for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
            asked = {"origin": origin, "access-control-request-method": "POST"}
            for reply in (
                served.client.options("/v1/audio/transcriptions", headers=asked),
                served.client.post("/v1/audio/transcriptions", files={"file": wav(1.0)}, headers={"origin": origin}),
            ):
                assert reply.headers.get("access-control-allow-origin") == allowed


def test_a_data_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """As in a container with a read-only root and no volume."""
    (tmp_path / "file").touch()
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/src:{ROOT}", "WHISPER_STATE_DIR": str(tmp_path)}
    variables |= {"WHISPER_TORCHSERVE_URL": "http://127.0.0.1:9", "WHISPER_DATA_DIR": str(tmp_path / "file" / "data")}
    done = subprocess.run([sys.executable, "-m", "gateway"], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "set WHISPER_DATA_DIR" in done.stderr and "Traceback" not in done.stderr
