"""What goes wrong is said on the page, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from gateway.keys import digest_of
from tests.browser.actions import failure, shown_text
from tests.browser.gateway import running_gateway
from tests.serve.recordings import SAMPLES

if TYPE_CHECKING:
    from playwright.sync_api import Page

SENTENCE = "Set a timer for five minutes."
KEY = "wk-a-key-for-the-tests"


def send(page: Page, recording: Path) -> None:
    page.set_input_files("#file", recording)


def test_a_file_without_audio(page: Page, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("This is no recording. " * 100)
    send(page, tmp_path / "letter.txt")
    text = failure(page)
    assert "not audio in a known container" in text and "Check that the file plays" in text
    assert page.is_hidden("#progress") and page.is_hidden("#transcript")


def test_an_empty_file(page: Page, tmp_path: Path) -> None:
    (tmp_path / "empty.mp3").touch()
    send(page, tmp_path / "empty.mp3")
    assert "empty" in failure(page)


def test_a_recording_without_speech_is_no_error(page: Page, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000 * 3), 16_000)
    send(page, tmp_path / "silence.wav")
    page.wait_for_selector("#transcript:not([hidden])")
    assert "no speech was found" in page.inner_text("#warnings") and page.is_hidden("#failure")
    assert page.is_disabled("#edit")


def test_a_url_that_the_server_refuses(page: Page) -> None:
    page.click("#tab-url")
    page.fill("#url", "http://127.0.0.1:1/episode.mp3")
    page.press("#url", "Enter")
    assert "url" in failure(page).lower()


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (
            503,
            {"retry-after": "15"},
            '{"error":{"message":"too many open requests","code":"overloaded"}}',
            ["Too many open requests.", "in 15 s"],
        ),
        (502, {}, "<html>bad gateway</html>", ["answered with the status 502", "busy, starting or stopping"]),
        (500, {}, '{"error":{"message":"the engine failed","code":"engine_error"}}', ["The engine failed.", "log"]),
        (200, {}, '{"type":"error","error":{"message":"the worker ended","code":"worker_died"}}\n', ["The worker ended.", "Try again"]),
        (200, {}, '{"type":"progress","progress":{"seconds":0,"duration":3}}\n', ["ended before the transcript was complete"]),
    ],
)
def test_a_server_that_cannot(page: Page, status: int, headers: dict[str, str], body: str, expected: list[str]) -> None:
    """Replies that a healthy server does not give, so they are made here. "Try again" then reaches the real server."""
    page.route("**/predictions/whisper", lambda route: route.fulfill(status=status, headers=headers, body=body), times=1)
    send(page, SAMPLES / "timer.flac")
    text = failure(page)
    assert all(part in text for part in expected), text
    page.click("#retry")
    page.wait_for_selector("#edit:not([disabled])")
    assert shown_text(page) == SENTENCE and page.is_hidden("#failure")


def test_limits_and_a_server_that_is_gone(open_page: Callable[..., Page], tmp_path: Path) -> None:
    with running_gateway(tmp_path / "gateway", WHISPER_MAX_AUDIO_BYTES="60000", WHISPER_MAX_AUDIO_SECONDS="4") as gateway:
        page = open_page(gateway.url)
        page.wait_for_selector("#model:has-text('Model: nano')")
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        send(page, SAMPLES / "home.flac")
        assert "larger than the 0.057 MB" in failure(page)
        assert "POST" not in sent, "a file that is too large was sent all the same"
        send(page, SAMPLES / "weather.mp3")
        page.wait_for_selector("#failure-message:has-text('longer')")
        assert "Send a shorter recording" in failure(page)
        gateway.stop()
        send(page, SAMPLES / "timer.flac")
        page.wait_for_selector("#failure-message:has-text('cannot be reached')")
        assert "Check that the server runs" in failure(page)


def test_api_keys(open_page: Callable[..., Page], tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(f"keys:\n  - name: anna\n    sha256: {digest_of(KEY)}\n    requests_per_minute: 6\n")
    with running_gateway(tmp_path / "gateway", WHISPER_API_KEYS_FILE=str(tmp_path / "keys.yaml")) as gateway:
        page = open_page(gateway.url)
        page.wait_for_selector("#key-hint:has-text('This server needs an API key')")
        with page.expect_response("**/predictions/whisper"):
            send(page, SAMPLES / "timer.flac")
        page.wait_for_selector("#progress", state="hidden")

        page.fill("#key-value", "wk-wrong")
        page.press("#key-value", "Enter")
        page.wait_for_selector("#key-hint:has-text('The API key is not known here')")
        assert page.evaluate("document.activeElement.id") == "key-value"

        page.fill("#key-value", KEY)
        page.press("#key-value", "Enter")
        page.wait_for_selector("#edit:not([disabled])")
        assert shown_text(page) == SENTENCE, "the request that was refused is sent again"
        assert page.is_hidden("#key") and page.is_hidden("#failure")
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [0, 0, ""]

        page.reload()
        page.wait_for_selector("#key:not([hidden])")
        page.fill("#key-value", KEY)
        page.check("#key-keep")
        page.press("#key-value", "Enter")
        page.wait_for_selector("#model:has-text('Model: nano')")
        page.reload()
        page.wait_for_selector("#model:has-text('Model: nano')")
        assert page.is_hidden("#key")

        for _ in range(6):
            send(page, SAMPLES / "timer.flac")
            page.wait_for_selector("#edit:not([disabled]), #failure:not([hidden])")
        text = failure(page)
        assert "requests a minute" in text and "The limit of this API key is reached" in text and "Try again in" in text


def test_without_javascript(open_page: Callable[..., Page], tmp_path: Path) -> None:
    """The page says so, gives the line for a terminal, and its plain form works."""
    page = open_page(java_script_enabled=False)
    text = page.inner_text("main")
    assert "needs JavaScript" in text and f"curl -T meeting.mp3 {page.url}predictions/whisper" in text
    assert page.is_hidden("#app")
    page.set_input_files("#plain-file", SAMPLES / "timer.flac")
    page.click("button:visible")
    page.wait_for_url("**/predictions/whisper")
    assert page.inner_text("body").strip() == SENTENCE
