"""A recording becomes a transcript that grows, plays, is edited, and leaves the page as a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
import soundfile

from tests.browser.actions import download, shown_text, start_of, transcribe
from tests.browser.gateway import Gateway
from tests.serve.recordings import SAMPLES, assert_understood

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

SENTENCE = "Set a timer for five minutes."


def test_a_file_becomes_a_transcript(page: Page) -> None:
    transcribe(page, "weather.mp3")
    assert_understood(shown_text(page), "weather.mp3")
    assert page.inner_text("#transcript-heading") == "weather.mp3"
    assert page.inner_text("#facts") == "0:05 · English · nano"
    assert "demonstration model" in page.inner_text("#warnings")
    assert page.is_hidden("#progress") and page.is_hidden("#failure")
    assert page.inner_text("#announcement") == "The transcript is complete: 2 segments."


def test_a_dropped_file_is_transcribed(page: Page) -> None:
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "timer.flac"));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }""",
        list((SAMPLES / "timer.flac").read_bytes()),
    )
    page.wait_for_selector("#edit:not([disabled])")
    assert shown_text(page) == SENTENCE


def test_the_transcript_grows_and_the_time_left_is_shown(page: Page) -> None:
    """The reply arrives in pieces: a stand-in for a server that takes its time, whose lines are the real server's form."""
    page.evaluate(
        """() => {
            window.XMLHttpRequest = class extends EventTarget {
                upload = {}; status = 200; responseText = "";
                open() {} setRequestHeader() {} abort() {}
                send() {
                    window.say = (line) => { this.responseText += JSON.stringify(line) + "\\n"; this.onprogress(); };
                    this.upload.onprogress({ loaded: 1, total: 2 });
                }
            };
        }"""
    )
    page.set_input_files("#file", SAMPLES / "timer.flac")
    assert page.inner_text("#progress-phase") == "Uploading"
    page.evaluate("say({type: 'progress', progress: {seconds: 0, duration: 600}})")
    assert (page.inner_text("#progress-phase"), page.inner_text("#progress-detail")) == ("Transcribing", "0:00 of 10:00")
    segment = "{type: 'segment', id: 0, start: 0, end: 150, text: ' The first sentence.', progress: {seconds: 150, duration: 600}}"
    page.wait_for_function(f"() => {{ say({segment}); return / left$/.test(document.getElementById('progress-detail').textContent); }}")
    assert re.fullmatch(r"2:30 of 10:00 · about \d+ (s|min) left", page.inner_text("#progress-detail"))
    assert page.get_attribute("#progress-bar", "value") == "0.25"
    assert page.locator(".words").first.inner_text() == "The first sentence."
    assert page.is_disabled("#edit")


def test_the_word_that_is_heard_is_highlighted(page: Page) -> None:
    transcribe(page, "timer.flac")
    for word in page.locator(".word").all():
        start, end = (float(word.get_attribute(f"data-{edge}") or "nan") for edge in ("start", "end"))
        if end - start < 0.04:  # the bundled model gives some words no duration
            continue
        page.evaluate("(seconds) => { document.getElementById('audio').currentTime = seconds; }", (start + end) / 2)
        page.wait_for_function("(text) => document.querySelector('.spoken')?.textContent === text", arg=word.inner_text())
    assert page.locator(".spoken").count() == 1


def test_the_highlight_follows_the_sound(page: Page) -> None:
    """A busy machine draws few frames, so short words may be passed over; but none comes out of turn."""
    transcribe(page, "timer.flac")
    page.evaluate(
        """() => {
            window.spoken = [];
            const note = (changes) => changes.forEach(({ target }) => target.matches(".spoken") && spoken.push(target.textContent));
            new MutationObserver(note).observe(document.getElementById("segments"), { subtree: true, attributeFilter: ["class"] });
            document.getElementById("audio").play();
        }"""
    )
    page.wait_for_function("() => document.getElementById('audio').ended")
    places = [SENTENCE.split().index(word) for word in page.evaluate("spoken")]
    assert len(places) >= 2 and places == sorted(set(places))


def test_a_click_on_a_word_plays_from_it(page: Page) -> None:
    transcribe(page, "weather.mp3")
    page.evaluate(
        """() => {
            window.jumps = [];
            document.getElementById("audio").addEventListener("seeking", ({ target }) => jumps.push(target.currentTime));
        }"""
    )
    page.locator(".word", has_text="Boston").click()
    page.wait_for_function("() => jumps.length === 1 && !document.getElementById('audio').paused")
    page.locator(".time").first.click()
    page.wait_for_function("() => jumps.length === 2")
    assert page.evaluate("jumps") == pytest.approx([start_of(page, "Boston"), 0.0], abs=0.01)


def test_speed(page: Page) -> None:
    transcribe(page, "timer.flac")
    page.select_option("#speed", "1.5")
    assert page.evaluate("document.getElementById('audio').playbackRate") == 1.5


def record_forms(page: Page) -> None:
    """Keep the fields of every request, without the recording, in `forms`."""
    page.evaluate(
        """() => {
            window.forms = [];
            const { send } = XMLHttpRequest.prototype;
            XMLHttpRequest.prototype.send = function (form) {
                forms.push(Object.fromEntries([...form].filter(([name]) => name !== "file")));
                return send.call(this, form);
            };
        }"""
    )


def test_options_reach_the_server(page: Page) -> None:
    record_forms(page)
    page.select_option("#language", "en")
    page.select_option("#strategy", "sequential")
    transcribe(page, "timer.flac")
    expected = {"language": "en", "task": "transcribe", "strategy": "sequential", "stream": "true", "word_timestamps": "true"}
    assert page.evaluate("forms") == [expected]


def test_every_language_can_be_chosen(page: Page) -> None:
    names = page.locator("#language option").all_inner_texts()
    assert len(names) == 101 and names[0] == "Detect" and names[1:] == sorted(names[1:])
    assert {"English", "German", "Chinese", "Welsh"} <= set(names)


def test_an_engine_without_word_times_still_answers(page: Page) -> None:
    error = {"message": "word_timestamps is not available", "type": "", "param": "word_timestamps", "code": "invalid_value"}
    page.route("**/predictions/whisper", lambda route: route.fulfill(status=400, json={"error": error}), times=1)
    record_forms(page)
    transcribe(page, "timer.flac")
    assert shown_text(page) == SENTENCE
    assert ["word_timestamps" in form for form in page.evaluate("forms")] == [True, False]


def test_edits_are_in_every_download(page: Page) -> None:
    transcribe(page, "timer.flac")
    before = json.loads(download(page, "json")[1])["segments"][0]
    page.click("#edit")
    page.fill("#segments textarea", "Set a timer for six whole minutes.")
    name, text = download(page, "txt")
    assert (name, text) == ("timer.txt", "Set a timer for six whole minutes.\n")
    name, text = download(page, "srt")
    assert name == "timer.srt"
    assert re.fullmatch(r"1\n[\d:]{8},\d{3} --> [\d:]{8},\d{3}\nSet a timer for six whole minutes\.\n\n", text)
    name, text = download(page, "vtt")
    assert name == "timer.vtt"
    assert re.fullmatch(r"WEBVTT\n\n[\d:]{8}\.\d{3} --> [\d:]{8}\.\d{3}\nSet a timer for six whole minutes\.\n\n", text)
    name, text = download(page, "json")
    reply = json.loads(text)
    assert (name, reply["text"], reply["language"], reply["model"]) == ("timer.json", "Set a timer for six whole minutes.", "en", "nano")
    (after,) = reply["segments"]
    assert [word["word"] for word in after["words"]] == [" Set", " a", " timer", " for", " six", " whole", " minutes."]
    assert after["words"][:4] == before["words"][:4] and after["words"][-1] == before["words"][-1]
    assert (after["start"], after["end"]) == (before["start"], before["end"])
    page.click("#edit")
    assert shown_text(page) == "Set a timer for six whole minutes."


def test_undo_in_the_text(page: Page) -> None:
    transcribe(page, "timer.flac")
    page.click("#edit")
    page.focus("#segments textarea")
    page.keyboard.press("End")
    page.keyboard.type(" Now.")
    assert page.input_value("#segments textarea") == f"{SENTENCE} Now."
    page.keyboard.press("Control+z")
    assert page.input_value("#segments textarea") == SENTENCE


def test_unsaved_edits_are_not_lost_silently(page: Page) -> None:
    questions: list[str] = []

    def decline(dialog: object) -> None:
        questions.append(dialog.message)  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", decline)
    transcribe(page, "timer.flac")
    page.click("#edit")
    page.fill("#segments textarea", "Mine.")
    page.set_input_files("#file", SAMPLES / "weather.mp3")
    assert questions == ["The edited transcript has not been saved. Replace it?"]
    assert download(page, "txt") == ("timer.txt", "Mine.\n")
    transcribe(page, "weather.mp3")
    assert len(questions) == 1, "saved edits are asked about again"


def test_copy(page: Page) -> None:
    transcribe(page, "timer.flac")
    page.click("#copy")
    page.wait_for_selector("#copy:text-is('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == SENTENCE + "\n"


def test_cancel(page: Page) -> None:
    page.route("**/predictions/whisper", lambda route: None)  # never answered
    page.set_input_files("#file", SAMPLES / "timer.flac")
    page.click("#cancel")
    page.wait_for_selector("#progress", state="hidden")
    assert page.inner_text("#announcement") == "Cancelled" and page.is_hidden("#failure")


def test_a_second_recording_takes_the_place_of_one_that_is_under_way(page: Page) -> None:
    held: list[Route] = []
    page.route("**/predictions/whisper", lambda route: held.append(route) if not held else route.continue_())
    page.set_input_files("#file", SAMPLES / "weather.mp3")
    page.wait_for_selector("#progress:not([hidden])")
    transcribe(page, "timer.flac")
    assert shown_text(page) == SENTENCE and page.is_hidden("#failure")


def test_a_format_that_the_browser_cannot_play(page: Page, tmp_path: Path) -> None:
    """Its transcript is shown, and the player says why it is silent. Chromium plays no AIFF."""
    samples, rate = soundfile.read(SAMPLES / "timer.flac")
    soundfile.write(tmp_path / "speech.aiff", samples, rate)
    transcribe(page, tmp_path / "speech.aiff")
    assert shown_text(page) == SENTENCE
    assert "cannot play" in page.inner_text("#player-hint") and page.is_hidden("#audio")


def test_retimed_words_make_up_the_text(page: Page) -> None:
    """words.js on edits of all kinds: the words join to the text, in order, within the segment; unchanged ones keep their times."""
    result = page.evaluate(
        """async () => {
            const { retime } = await import("/page/words.js");
            const words = [" Set", " a", " timer", " for", " five", " minutes."].map((word, i) => ({ word, start: i, end: i + 1 }));
            const texts = [
                "", " Set", " Set a timer for five minutes.", " Sets a timer", " a timer for", " a a a timer for five minutes. minutes.",
                "  Set  a\\n timer", " entirely new words here", " 今日は", " Set a timer for five minutes. Now.",
                " Now set a timer for five minutes.", "   ",
            ];
            return texts.map((text) => [text, retime(words, text, 0, 6)]);
        }"""
    )
    assert len(result) == 12
    for text, retimed in result:
        assert "".join(word["word"] for word in retimed) == text or not text.strip()
        edges = [edge for word in retimed for edge in (word["start"], word["end"])]
        assert edges == sorted(edges) and all(0 <= edge <= 6 for edge in edges), text
    assert [word["start"] for word in result[2][1]] == [0, 1, 2, 3, 4, 5]
    assert [word["start"] for word in result[9][1]][:6] == [0, 1, 2, 3, 4, 5]


def test_subtitles_are_those_of_the_server(page: Page, gateway: Gateway) -> None:
    transcribe(page, "home.flac")
    segments = json.loads(download(page, "json")[1])["segments"]
    assert len(segments) > 3
    with (SAMPLES / "home.flac").open("rb") as audio:
        form = {"response_format": "srt", "word_timestamps": "true"}
        expected = requests.post(f"{gateway.url}/predictions/whisper", files={"file": audio}, data=form, timeout=60)
    assert download(page, "srt")[1] == expected.text


def test_hostile_subtitles_stay_valid(page: Page) -> None:
    cues = page.evaluate(
        """async () => {
            const { cues } = await import("/page/subtitles.js");
            const text = "<b>one</b> --> two\\n\\nthree";
            const times = [[5, 4], [1, 9], [1, 1]];
            return cues([{ start: 2, end: 2, text: "  " }, ...times.map(([start, end]) => ({ start, end, text }))]);
        }"""
    )
    assert [cue["text"] for cue in cues] == ["<b>one</b> -> two\nthree"] * 3
    edges = [edge for cue in cues for edge in (cue["start"], cue["end"])]
    assert edges == sorted(edges) and all(cue["start"] < cue["end"] for cue in cues)


def test_markup_in_a_transcript_is_text(page: Page) -> None:
    line = json.dumps(
        {
            "type": "transcript",
            "text": "x",
            "language": "en",
            "duration": 1,
            "model": "<i>m</i>",
            "warnings": ["<img src=x>"],
            "segments": [{"id": 0, "start": 0, "end": 1, "text": " <img src=x onerror=alert(1)>"}],
        }
    )
    page.route("**/predictions/whisper", lambda route: route.fulfill(status=200, body=line + "\n", content_type="application/x-ndjson"))
    transcribe(page, "timer.flac")
    assert shown_text(page) == "<img src=x onerror=alert(1)>"
    assert page.locator("#app img, #app i").count() == 0


def test_every_address_is_relative(gateway: Gateway, page: Page) -> None:
    """So a proxy may serve the gateway at /speech/."""
    page.route("**/speech/**", lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace("/speech/", "/"))))
    page.goto(f"{gateway.url}/speech/")
    with page.expect_request(lambda request: request.method == "POST") as waiting:
        page.set_input_files("#file", SAMPLES / "timer.flac")
    assert waiting.value.url == f"{gateway.url}/speech/predictions/whisper"
