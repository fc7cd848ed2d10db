"""Live captions: the browser's microphone through the Realtime WebSocket. The stand-in for a microphone plays a sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.keys import digest_of
from tests.browser.actions import download, failure, shown_text
from tests.browser.gateway import Gateway, running_gateway

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHRASE = "timer for five minutes"
KEY = "wk-a-key-for-the-tests"


def wait_for_captions(page: Page) -> None:
    page.wait_for_function("(phrase) => document.getElementById('captions').innerText.includes(phrase)", arg=PHRASE)


def test_words_appear_while_somebody_speaks(page: Page) -> None:
    page.click("#tab-captions")
    page.select_option("#language", "en")
    page.click("#caption")
    wait_for_captions(page)
    assert page.inner_text("#caption") == "Stop" and page.is_visible("#caption-level")
    assert page.get_attribute("#captions", "aria-live") == "polite"
    page.click("#caption")
    page.wait_for_selector("#caption:text-is('Start captions')")
    page.wait_for_selector("#edit:not([disabled])")
    assert PHRASE in shown_text(page) and page.is_hidden("#failure") and page.is_hidden("#player")
    name, subtitles = download(page, "srt")
    assert name == "captions.srt" and PHRASE in subtitles and " --> " in subtitles


def test_captions_can_be_begun_again(page: Page) -> None:
    page.click("#tab-captions")
    for _ in range(2):
        page.click("#caption")
        wait_for_captions(page)
        page.click("#caption")
        page.wait_for_selector("#caption:text-is('Start captions')")
    assert page.is_hidden("#failure")


def test_silence_is_no_error(page: Page) -> None:
    page.evaluate(
        """() => {
            navigator.mediaDevices.getUserMedia = async () => new AudioContext().createMediaStreamDestination().stream;
        }"""
    )
    page.click("#tab-captions")
    page.click("#caption")
    page.wait_for_selector("#caption-clock:has-text('0:02')")
    page.click("#caption")
    page.wait_for_selector("#caption:text-is('Start captions')")
    assert page.is_hidden("#failure") and page.is_hidden("#transcript")


def test_keys_and_a_server_that_ends(open_page: Callable[..., Page], tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(f"keys:\n  - name: anna\n    sha256: {digest_of(KEY)}\n")
    with running_gateway(tmp_path / "gateway", WHISPER_API_KEYS_FILE=str(tmp_path / "keys.yaml")) as gateway:
        page = open_page(gateway.url)
        page.click("#tab-captions")
        page.click("#caption")
        page.wait_for_selector("#caption:text-is('Start captions')")
        page.fill("#key-value", KEY)
        page.press("#key-value", "Enter")
        wait_for_captions(page)  # they begin by themselves
        gateway.stop()
        page.wait_for_selector("#failure:not([hidden])")
        assert "live captions ended" in failure(page) or "stopping" in failure(page)
        assert page.is_enabled("#caption") and page.inner_text("#caption") == "Start captions"


def test_the_sound_is_sent_as_the_microphone_gives_it(page: Page, gateway: Gateway) -> None:
    """pcm.js on a tone of 440 Hz at the rates of common sound cards: the length, the rate and the loudness stay."""
    result = page.evaluate(
        """async (rates) => {
            const measured = [];
            for (const rate of rates) {
                const context = new OfflineAudioContext(1, rate * 2, rate);
                await context.audioWorklet.addModule("/page/pcm.js");
                const node = new AudioWorkletNode(context, "pcm", { numberOfOutputs: 1 });
                const tone = new OscillatorNode(context, { frequency: 440 });
                const samples = [];
                node.port.onmessage = ({ data }) => samples.push(...new Int16Array(data));
                tone.connect(node).connect(context.destination);
                tone.start();
                await context.startRendering();
                await new Promise((resolve) => setTimeout(resolve, 200));
                const crossings = samples.filter((sample, i) => i && samples[i - 1] < 0 && sample >= 0).length;
                measured.push([samples.length, crossings, Math.max(...samples)]);
            }
            return measured;
        }""",
        [24_000, 44_100, 48_000],
    )
    for length, crossings, loudest in result:
        assert abs(length - 48_000) <= 2_400 and abs(crossings - 440 * length / 24_000) <= 2 and 30_000 < loudest <= 32_767
