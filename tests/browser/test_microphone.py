"""Recordings from the microphone. The browser's stand-in for one plays a sample again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.browser.actions import download, failure, shown_text

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_recording_is_transcribed_and_can_be_played(page: Page) -> None:
    page.click("#tab-microphone")
    page.click("#record")
    page.wait_for_selector("#record-clock:has-text('0:06')")
    assert page.inner_text("#record") == "Stop and transcribe"
    page.click("#record")
    page.wait_for_selector("#edit:not([disabled])")
    assert "timer for five minutes" in shown_text(page)
    page.wait_for_function("() => Number.isFinite(document.getElementById('audio').duration)")
    page.locator(".word").first.click()
    page.wait_for_selector(".spoken")
    assert download(page, "txt")[0].startswith("recording 20")


def test_the_level_moves(page: Page) -> None:
    page.click("#tab-microphone")
    page.click("#record")
    page.wait_for_function("() => document.getElementById('record-level').value > 0.3")
    page.click("#discard")
    page.wait_for_selector("#record:text-is('Start recording')")
    assert page.is_hidden("#transcript") and page.is_hidden("#record-level") and page.is_hidden("#failure")


def test_without_permission(page: Page) -> None:
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); }; }")
    page.click("#tab-microphone")
    page.click("#record")
    assert "Allow it in the address bar" in failure(page)
    assert page.inner_text("#record") == "Start recording" and page.is_enabled("#record")


def test_without_a_secure_address(page: Page) -> None:
    page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.click("#tab-captions")
    page.click("#caption")
    assert "https://" in failure(page)
