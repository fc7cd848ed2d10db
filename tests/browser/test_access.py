"""The page by keyboard, by screen reader, on a phone, with large contrast and without motion."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.actions import start_of, transcribe
from tests.browser.conftest import WAIT_MS
from tests.node.packages import node_project
from tests.serve.recordings import SAMPLES

if TYPE_CHECKING:
    from playwright.sync_api import FileChooser, Page, Route

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
NARROW: dict[str, Any] = {"viewport": {"width": 320, "height": 640}}
TABS = ("file", "microphone", "url", "captions")


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core, the usual checker of accessibility (WCAG)."""
    return (node_project() / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Page, axe: str) -> list[str]:
    """Every rule of axe that the page breaks, best practices included."""
    page.evaluate(axe)
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
    return [f"{item['id']}: {json.dumps([node['html'] for node in item['nodes']])}" for item in found]


def refuse(status: int, route: Route) -> None:
    route.fulfill(status=status, json={"error": {"message": "not now"}})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_no_rule_of_axe_is_broken(open_page: Callable[..., Page], axe: str, scheme: str, options: dict[str, Any]) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce", **options)
    for tab in TABS:
        page.click(f"#tab-{tab}")
        assert violations(page, axe) == [], tab
    for status, shown in ((503, "#failure"), (401, "#key")):
        page.route("**/predictions/whisper", partial(refuse, status), times=1)
        page.set_input_files("#file", SAMPLES / "timer.flac")
        page.wait_for_selector(f"{shown}:not([hidden])")
        assert violations(page, axe) == [], shown
    transcribe(page)
    page.locator(".word").first.click()
    page.wait_for_selector(".spoken")
    assert violations(page, axe) == [], "transcript"
    page.click("#edit")
    assert violations(page, axe) == [], "edits"


@pytest.mark.parametrize("options", [NARROW, PHONE], ids=["320", "phone"])
def test_no_horizontal_scroll(open_page: Callable[..., Page], options: dict[str, Any]) -> None:
    page = open_page(**options)
    transcribe(page)
    for tab in TABS:
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= options["viewport"]["width"], tab
    page.click("#edit")
    assert page.evaluate("document.documentElement.scrollWidth") <= options["viewport"]["width"]


def test_everything_works_by_keyboard(page: Page) -> None:
    choosers: list[FileChooser] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # early: the browser learns of it asynchronously
    page.keyboard.press("Tab")
    assert focused(page) == "tab-file"
    for key, tab in (
        ("ArrowRight", "microphone"),
        ("ArrowRight", "url"),
        ("End", "captions"),
        ("ArrowRight", "file"),
        ("ArrowLeft", "captions"),
    ):
        page.keyboard.press(key)
        assert focused(page) == f"tab-{tab}" and page.is_visible(f"#panel-{tab}")
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    assert focused(page) == "file"
    page.keyboard.press("Space")
    deadline = time.monotonic() + WAIT_MS / 1000
    while not choosers and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    choosers[0].set_files(SAMPLES / "weather.mp3")
    page.wait_for_selector("#edit:not([disabled])")

    page.focus("#edit")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.focus("#edit")
    page.keyboard.press("Enter")
    tab_until(page, ".word")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    word = page.evaluate("document.activeElement.textContent")
    assert word == page.locator(".segments li").nth(1).locator(".word").nth(1).inner_text()
    assert page.evaluate("document.activeElement.getAttribute('role')") == "button"
    start = start_of(page, word)
    page.keyboard.press("Enter")
    page.wait_for_function("(start) => document.getElementById('audio').currentTime >= start - 0.01", arg=start)
    assert page.locator('.word[tabindex="0"]').count() == 1


def test_the_focus_is_visible(page: Page) -> None:
    transcribe(page)
    page.focus("#tab-file")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        style = page.evaluate(
            """() => {
                const focused = document.activeElement;
                const node = focused.id === "file" ? document.getElementById("drop") : focused;
                return [node.id || node.className || node.tagName, getComputedStyle(node).outlineStyle];
            }"""
        )
        if style[0] in ("BODY", "audio"):  # the browser draws its own player
            continue
        seen.add(style[0])
        assert style[1] != "none", f"{style[0]} shows no focus"
    assert {"drop", "language", "task", "strategy", "edit", "copy", "time", "speed"} <= seen


def test_what_a_screen_reader_gets(page: Page) -> None:
    transcribe(page)
    tree = page.locator("body").aria_snapshot()
    for line in (
        '- heading "Whisper" [level=1]',
        '- tablist "Recording"',
        '- tab "File" [selected]',
        '- combobox "Language"',
        '- combobox "Strategy"',
        '- heading "weather.mp3" [level=2]',
        '- button "Edit"',
        '- button "Download subtitles, srt"',
        '- button "Play from 0:00"',
        '- region "Player"',
    ):
        assert line in tree, f"{line} is not in:\n{tree}"
    assert "What is the weather in Paris today?" in tree, "a segment is read as one text, not word by word"
    assert page.get_attribute("html", "lang") == "en" and page.get_attribute("#segments", "lang") == "en"
    assert page.get_attribute("#announcement", "aria-live") == "polite" and page.get_attribute("#failure", "role") == "alert"


def test_motion_is_reduced_on_request(open_page: Callable[..., Page]) -> None:
    page = open_page(reduced_motion="reduce")
    page.route("**/predictions/whisper", lambda route: None)
    page.set_input_files("#file", SAMPLES / "timer.flac")
    page.wait_for_selector("#progress:not([hidden])")
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def focused(page: Page) -> str:
    """The id of the element with the focus."""
    return str(page.evaluate("document.activeElement.id"))


def tab_until(page: Page, selector: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"the tab key does not reach {selector}")
