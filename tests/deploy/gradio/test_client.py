"""The end points, by gradio_client as programs use it."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from gateway.keys import digest_of
from tests.browser.gateway import Gateway, running_gateway
from tests.deploy.gradio.app import running_app
from tests.serve.recordings import SAMPLES, assert_understood
from tests.serve.server import ROOT

gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed (deploy/gradio/requirements.txt)")
SENTENCE = "Set a timer for five minutes."
TIMED = re.compile(r"\[\d\d:\d\d\.\d{3} -> \d\d:\d\d\.\d{3}\] \S.*")


@pytest.fixture(scope="module")
def client(app: str) -> Any:
    return gradio_client.Client(app, verbose=False)


def recording(name: str | Path) -> Any:
    return gradio_client.handle_file(str(SAMPLES / name))


@pytest.mark.parametrize("name", ["/predict", "/predict_1"])
def test_the_end_points_of_whisper_jax(client: Any, name: str) -> None:
    text, seconds = client.predict(recording("weather.mp3"), "transcribe", False, api_name=name)
    assert_understood(text, "weather.mp3")
    assert float(seconds) > 0
    text, _ = client.predict(recording("weather.mp3"), "transcribe", True, api_name=name)
    lines = text.splitlines()
    assert len(lines) == 2 and all(TIMED.fullmatch(line) for line in lines)


def test_plain_end_points(client: Any) -> None:
    assert client.predict(recording("timer.flac"), api_name="/transcribe") == SENTENCE
    assert client.predict(recording("timer.flac"), task="translate", api_name="/transcribe")
    assert TIMED.fullmatch(client.predict(recording("timer.flac"), return_timestamps=True, api_name="/transcribe"))


def test_there_are_no_other_end_points(client: Any) -> None:
    names = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(names) == {"/predict", "/predict_1", "/predict_2", "/transcribe", "/transcribe_url"}


def test_urls(tmp_path: Path) -> None:
    """The server fetches them. A loopback address has to be allowed for the test."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SAMPLES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{files.server_port}/timer.flac"
        with (
            running_gateway(tmp_path / "gateway", WHISPER_URL_PRIVATE_HOSTS="127.0.0.1") as gateway,
            running_app(gateway.url, tmp_path / "log") as address,
        ):
            client = gradio_client.Client(address, verbose=False)
            link, text, _ = client.predict(url, "transcribe", False, api_name="/predict_2")
            assert (text, link) == (SENTENCE, f'<a href="{url}" rel="noreferrer noopener" target="_blank">{url}</a>')
            assert client.predict(url, api_name="/transcribe_url") == SENTENCE
        files.shutdown()


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        ((None, "transcribe", False), "/predict_1", "record or choose one first"),
        ((gradio_client.handle_file(str(ROOT / "README.md")), "transcribe", False), "/predict_1", "send audio or video"),
        (("", "transcribe", False), "/predict_2", "paste the address"),
        (("http://127.0.0.1:1/x.mp3", "transcribe", False), "/predict_2", "not public"),
        (("file:///etc/passwd", "transcribe", False), "/transcribe_url", "url"),
    ],
)
def test_bad_input(client: Any, arguments: tuple[Any, ...], name: str, expected: str) -> None:
    with pytest.raises(Exception, match=expected):
        client.predict(*arguments, api_name=name)


@pytest.mark.parametrize("name", ["predict_1", "transcribe"])
def test_files_of_the_apps_machine_cannot_be_read(app: str, name: str) -> None:
    data = [{"path": str(SAMPLES / "timer.flac"), "meta": {"_type": "gradio.FileData"}}, "transcribe", False]
    begun = requests.post(f"{app}gradio_api/call/{name}", json={"data": data}, timeout=30).json()
    reply = requests.get(f"{app}gradio_api/call/{name}/{begun['event_id']}", timeout=30).text
    assert reply.startswith("event: error") and "timer for five" not in reply


def test_a_server_with_keys_and_one_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(f"keys:\n  - name: app\n    sha256: {digest_of('wk-app')}\n")
    with running_gateway(tmp_path / "gateway", WHISPER_API_KEYS_FILE=str(tmp_path / "keys.yaml")) as gateway:
        with (
            running_app(gateway.url, tmp_path / "log") as address,
            pytest.raises(Exception, match="start the app with a valid WHISPER_API_KEY"),
        ):
            gradio_client.Client(address, verbose=False).predict(recording("timer.flac"), api_name="/transcribe")
        with running_app(gateway.url, tmp_path / "log", WHISPER_API_KEY="wk-app") as address:
            client = gradio_client.Client(address, verbose=False)
            assert client.predict(recording("timer.flac"), api_name="/transcribe") == SENTENCE
            gateway.stop()
            with pytest.raises(Exception, match="cannot be reached"):
                client.predict(recording("timer.flac"), api_name="/transcribe")


def test_the_readme(app: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its example runs as it stands, but for the port."""
    monkeypatch.chdir(ROOT)
    readme = (ROOT / "deploy" / "gradio" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:7860/", app), names)
    assert_understood(names["text"], "weather.mp3")
    assert all(TIMED.fullmatch(line) for line in names["with_times"].splitlines())
    assert names["text"] in capsys.readouterr().out
