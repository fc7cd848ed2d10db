"""How far the text of realtime sessions is behind the speech: `python -m bench realtime`. Needs WHISPER_SPEECH_DATA.

Each session plays recordings of LibriSpeech test-clean at the speed of speech, other ones than the other sessions, with
pauses between them, so that the server finds the turns. The truth of a word's end is its time in the reply of the file
route. The lag of a word is the time from its end to the arrival of the delta that has it; the lag of a transcript, from
the end of the last word of a turn to the arrival of `completed`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import requests
import soundfile
import soxr
from websockets.asyncio.client import ClientConnection, connect

from whispercore.audio.recording import read_samples
from whispercore.types import SAMPLE_RATE

from . import datasets, results
from .load import LoadError
from .server import inprocess
from .work import HEADERS, clips

RATE, STEP, PAUSE = 24_000, 0.1, 1.5
PATIENCE = 300.0
EVENT = "conversation.item.input_audio_transcription"


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word without marks, and its end in seconds of the session."""

    text: str
    end: float


@dataclass(frozen=True, slots=True)
class Script:
    """What a session plays: 16-bit samples at 24 kHz, its words, and the end of the last word of each recording."""

    sound: bytes
    words: tuple[SpokenWord, ...]
    ends: tuple[float, ...]


@dataclass(slots=True)
class Log:
    """What a session received: (second, text) of each delta, and the second of each completed transcript."""

    deltas: list[tuple[float, str]] = field(default_factory=list)
    completed: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 when a session failed. Measures, saves the result, and prints it."""
    parser = argparse.ArgumentParser(prog="python -m bench realtime", description="The lag of live captions.")
    parser.add_argument("--model", default="base")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 10], metavar="N", help="sessions at once, in turn (default: 1 10)")
    parser.add_argument("--seconds", type=float, default=120.0, help="speech of each session (default: 120)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results")
    arguments = parser.parse_args(argv)
    origin = results.provenance()
    settings = {"model": arguments.model, "sessions": arguments.sessions, "seconds": arguments.seconds, "pause_seconds": PAUSE}
    try:
        with inprocess({"WHISPER_MODEL": arguments.model}) as server:
            server.wait_until_ready(clips()[0], HEADERS)
            url = f"http://127.0.0.1:{server.port}"
            measured = {str(count): measure(url, count, arguments.seconds) for count in arguments.sessions}
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    results.save(arguments.results or results.RESULTS, "realtime", origin, settings, measured)
    print(json.dumps(measured, indent=1, default=str))
    return 0


def measure(url: str, count: int, seconds: float) -> dict[str, Any]:
    """Lags of `count` sessions at once. Raises LoadError when a session has an error or loses a turn."""
    recordings = [recording.path for recording in datasets.named("test-clean").recordings if recording.seconds > 4.0]
    scripts = [script(url, recordings[i::count], seconds) for i in range(count)]
    logs = asyncio.run(_play_all(url, scripts))
    if errors := [error for log in logs for error in log.errors]:
        raise LoadError(f"a session failed: {errors[0]}")
    lags = [lag for spoken, log in zip(scripts, logs, strict=True) for lag in word_lags(spoken.words, log.deltas)]
    finals = [lag for spoken, log in zip(scripts, logs, strict=True) for lag in transcript_lags(spoken.ends, log.completed)]
    return {
        "words": sum(len(spoken.words) for spoken in scripts),
        "words_in_deltas": len(lags),
        "word_lag_seconds": _percentiles(lags),
        "turns": sum(len(log.completed) for log in logs),
        "transcript_lag_seconds": _percentiles(finals),
    }


def script(url: str, paths: Sequence[Path], seconds: float) -> Script:
    """Recordings with pauses between them, as many as fit into `seconds`, at least one."""
    sounds: list[np.ndarray[Any, Any]] = []
    words: list[SpokenWord] = []
    ends: list[float] = []
    position = 0.0
    for path in paths:
        sound = read_samples(path)
        if sounds and position + len(sound) / SAMPLE_RATE > seconds:
            break
        found = _words(url, sound)
        if not found:
            continue
        words += [SpokenWord(word.text, position + word.end) for word in found]
        ends.append(words[-1].end)
        sounds += [sound, np.zeros(round(PAUSE * SAMPLE_RATE), np.float32)]
        position += len(sound) / SAMPLE_RATE + PAUSE
    sound = soxr.resample(np.concatenate(sounds), SAMPLE_RATE, RATE)
    return Script((sound.clip(-1, 1) * 32_767).astype("<i2").tobytes(), tuple(words), tuple(ends))


def _words(url: str, sound: np.ndarray[Any, Any]) -> list[SpokenWord]:
    file = io.BytesIO()
    soundfile.write(file, sound, SAMPLE_RATE, format="WAV")
    form = {"model": "whisper-1", "language": "en", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
    reply = requests.post(f"{url}/v1/audio/transcriptions", files={"file": file.getvalue()}, data=form, timeout=600)
    reply.raise_for_status()
    return [SpokenWord(text, word["end"]) for word in reply.json()["words"] for text in plain(word["word"])]


def plain(text: str) -> list[str]:
    """The words of a text, in lower case and without marks."""
    return re.findall(r"[\w']+", text.lower())


def word_lags(words: Sequence[SpokenWord], deltas: Sequence[tuple[float, str]]) -> list[float]:
    """The lag of each spoken word that the deltas have."""
    received = [(second, text) for second, delta in deltas for text in plain(delta)]
    matcher = SequenceMatcher(None, [word.text for word in words], [text for _, text in received], autojunk=False)
    return [received[match.b + i][0] - words[match.a + i].end for match in matcher.get_matching_blocks() for i in range(match.size)]


def transcript_lags(ends: Sequence[float], completed: Sequence[float]) -> list[float]:
    """From the end of each recording's last word to the first transcript after it."""
    return [min(later) - end for end in ends if (later := [second for second in completed if second > end])]


async def _play_all(url: str, scripts: Sequence[Script]) -> list[Log]:
    return list(await asyncio.gather(*(_play(url, spoken, delay=0.37 * i) for i, spoken in enumerate(scripts))))


async def _play(url: str, spoken: Script, delay: float) -> Log:
    """Play one session. `delay`: sessions do not begin at the same moment."""
    await asyncio.sleep(delay)
    log = Log()
    options = {"transcription": {"model": "whisper-1", "language": "en"}, "turn_detection": {"type": "server_vad"}}
    async with connect(f"{url.replace('http', 'ws', 1)}/v1/realtime?intent=transcription") as client:
        await client.send(json.dumps({"type": "session.update", "session": {"type": "transcription", "audio": {"input": options}}}))
        began = time.monotonic()
        listening = asyncio.create_task(_listen(client, log, began))
        size = round(2 * RATE * STEP)
        for i, at in enumerate(range(0, len(spoken.sound), size), start=1):
            await client.send(
                json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(spoken.sound[at : at + size]).decode()})
            )
            await asyncio.sleep(max(0.0, began + i * STEP - time.monotonic()))
        await asyncio.wait_for(listening, PATIENCE)
    return log


async def _listen(client: ClientConnection, log: Log, began: float) -> None:
    """Until every turn that has stopped is transcribed and the sound is over, which a second without speech shows."""
    open_turns = 0
    while True:
        try:
            event = json.loads(await asyncio.wait_for(client.recv(), PAUSE + 10 if not open_turns else PATIENCE))
        except asyncio.TimeoutError:
            return
        now = time.monotonic() - began
        match event["type"]:
            case "input_audio_buffer.speech_started":
                open_turns += 1
            case kind if kind == f"{EVENT}.delta":
                log.deltas.append((now, event["delta"]))
            case kind if kind == f"{EVENT}.completed":
                log.completed.append(now)
                open_turns -= 1
            case kind if kind in ("error", f"{EVENT}.failed"):
                log.errors.append(event["error"]["message"])
                return


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        raise LoadError("too few words were received to measure a lag")
    cuts = statistics.quantiles(values, n=20)
    return {"median": round(statistics.median(values), 3), "p95": round(cuts[18], 3), "highest": round(max(values), 3)}


if __name__ == "__main__":
    sys.exit(main())
