"""What a user does on the page, and what the user then sees."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.serve.recordings import SAMPLES

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Page


def transcribe(page: Page, recording: str | Path | FilePayload = "weather.mp3") -> None:
    """Choose a recording, a sample by its name, and wait for its whole transcript."""
    page.set_input_files("#file", SAMPLES / recording if isinstance(recording, str) else recording)
    page.wait_for_selector("#edit:not([disabled])")


def shown_text(page: Page) -> str:
    """The text of the transcript."""
    return " ".join(" ".join(page.locator(".words").all_inner_texts()).split())


def failure(page: Page) -> str:
    """What the page says went wrong, and its advice."""
    page.wait_for_selector("#failure:not([hidden])")
    return page.locator("#failure").inner_text()


def download(page: Page, form: str) -> tuple[str, str]:
    """The name and the content of a download."""
    with page.expect_download() as waiting:
        page.click(f'[data-format="{form}"]')
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_text(encoding="utf-8")


def start_of(page: Page, word: str) -> float:
    """The second at which a word of the transcript begins."""
    node = page.locator(".word", has_text=re.compile(rf"^{re.escape(word)}$")).first
    return float(node.get_attribute("data-start") or "nan")
