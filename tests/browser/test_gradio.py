"""The Gradio app in Debian's Chromium: each tab, and an error that the user sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.gateway import Gateway
from tests.deploy.gradio.app import running_app
from tests.serve.recordings import SAMPLES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SENTENCE = "Set a timer for five minutes."


@pytest.fixture(scope="module")
def app(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the app."""
    with running_app(gateway.url, tmp_path_factory.mktemp("app") / "log") as address:
        yield address


@pytest.fixture
def page(browser: Browser, app: str) -> Iterator[Page]:
    """The app; nothing may be loaded from elsewhere."""
    foreign: list[str] = []
    context = browser.new_context(permissions=["microphone"])
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.on("request", lambda request: None if request.url.startswith((app, "blob:", "data:")) else foreign.append(request.url))
    page.goto(app)
    yield page
    context.close()
    assert foreign == []


def result(page: Page) -> str:
    """The transcription in the open tab, once it is there."""
    field = page.get_by_role("tabpanel").get_by_role("textbox").first
    page.wait_for_function("(field) => field.value", arg=field.element_handle())
    return field.input_value()


def test_a_file(page: Page) -> None:
    page.get_by_role("tab", name="File").click()
    page.locator('input[type="file"]').last.set_input_files(SAMPLES / "timer.flac")
    page.get_by_label("Return timestamps").locator("visible=true").check()
    page.get_by_role("button", name="Transcribe").locator("visible=true").click()
    assert result(page).endswith(f"] {SENTENCE}")


def test_the_microphone(page: Page) -> None:
    page.get_by_role("button", name="Record", exact=True).click()
    stop = page.get_by_role("button", name="Stop", exact=True).locator("visible=true")
    stop.wait_for()
    page.wait_for_function("() => /0:0[5-9]/.test(document.body.innerText)")
    stop.click()
    page.get_by_role("button", name="Play", exact=True).locator("visible=true").wait_for()  # the recording has been uploaded
    page.get_by_role("button", name="Transcribe").locator("visible=true").click()
    assert "timer for five minutes" in result(page)


def test_an_error_is_shown(page: Page) -> None:
    page.get_by_role("tab", name="URL").click()
    page.get_by_label("URL").locator("visible=true").fill("http://127.0.0.1:1/episode.mp3")
    page.get_by_role("button", name="Transcribe").locator("visible=true").click()
    page.get_by_text("is not public").first.wait_for()


def test_no_recording(page: Page) -> None:
    page.get_by_role("button", name="Transcribe").locator("visible=true").click()
    page.get_by_text("record or choose one first").first.wait_for()
