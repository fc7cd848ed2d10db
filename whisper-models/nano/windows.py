"""Compose training windows: clips from a pool, placed on silence or noise, with the tokens that Whisper should predict.

All mixing is done in mel power at 10 ms hops, where sounds can simply be added, so a batch costs milliseconds.
"""

import json
import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import grammar
import numpy as np
import torch
from generate import PAD_FRAMES
from whisper.tokenizer import Tokenizer, get_tokenizer

FRAMES_PER_SECOND = 100
N_MELS = 80
SILENT = -10.0
TELEPHONE_BIN = 62
"""The mel bin at 4 kHz, the upper limit of a telephone line."""

STAMP_GRID = 5
"""Timestamps are multiples of 5 x 20 ms = 0.1 s, so that there are five times fewer to learn."""

MAX_ECHO = 15
"""Frames of an earlier sentence's end that a window may begin with, because its end timestamp came too early."""

MAX_INITIAL_SECONDS = 1.0
"""The latest first timestamp that Whisper's decoding allows."""

PROMPT_TOKENS = 223
"""The most tokens of earlier text in Whisper's decoding: half of the decoder's positions, less one."""

STRING_PAUSE = 1.3
"""Silence around a digit string, which distinguishes its end from a gap between digits. Seconds."""


class Pool:
    """The clips generate.py rendered."""

    def __init__(self, path: Path) -> None:
        data = np.load(path)
        self.index = json.loads(str(data["index"]))
        self.mel, self.noise = data["mel"], data["noise"]
        self.ends = np.cumsum(data["lengths"])
        sentences = [i for i, clip in enumerate(self.index) if clip["kind"] == "sentence"]
        self.sentences = [i for i in sentences if not grammar.is_held_out(self.index[i]["text"])]
        self.digits: dict[str, dict[str, dict[str, list[int]]]] = {"digit": {}, "human": {}}
        for i, clip in enumerate(self.index):
            if clip["kind"] != "sentence":
                voices = self.digits[clip["kind"]].setdefault(clip["voice"], defaultdict(list))
                voices[clip["text"]].append(i)

    def clip(self, i: int) -> np.ndarray:
        """float32 (frames, 80): log10 mel power."""
        start = self.ends[i - 1] if i else 0
        mel: np.ndarray = self.mel[start : self.ends[i]].astype(np.float32)
        return mel


@dataclass
class Segment:
    """Speech between two pauses: clips and the silent frames before each."""

    text: str
    clips: list[np.ndarray]
    gaps: list[int]
    is_string: bool = False

    @property
    def frames(self) -> int:
        """Length in frames of 10 ms."""
        return sum(len(clip) for clip in self.clips) + sum(self.gaps)


@dataclass
class Window:
    """One example: mel (80, frames), its tokens, and where the loss begins."""

    mel: np.ndarray
    tokens: list[int]
    loss_from: int
    first_target: int
    fixed: int
    text_tokens: list[int] = field(default_factory=list)
    stamped: bool = False

    def after(self, prompt: list[int]) -> "Window":
        """The same window with `prompt` before <|startoftranscript|>."""
        head = len(prompt)
        return replace(self, tokens=[*prompt, *self.tokens], loss_from=self.loss_from + head, fixed=self.fixed + head)


@dataclass(frozen=True)
class Style:
    """The shares of each kind of window."""

    human: float = 0.2
    synthetic_digits: float = 0.1
    timestamps: float = 0.7
    nothing: float = 0.08


class Composer:
    """Draws random windows; deterministic for a seed."""

    def __init__(self, pool: Pool, seed: int, style: Style | None = None) -> None:
        self.pool, self.style = pool, style or Style()
        self.rng, self.numpy = random.Random(seed), np.random.default_rng(seed)
        self.tokenizer: Tokenizer = get_tokenizer(True, language="en", task="transcribe")

    def encode(self, text: str) -> list[int]:
        """Text → tokens, with the space Whisper puts first."""
        tokens: list[int] = self.tokenizer.encode(" " + text)
        return tokens

    def stamp(self, frame: int) -> int:
        """Frame of 10 ms → timestamp token of 20 ms, on the nano model's coarser grid."""
        token: int = self.tokenizer.timestamp_begin + min(1500, max(0, STAMP_GRID * round(frame / 2 / STAMP_GRID)))
        return token

    def segment(self) -> Segment:
        """A sentence, or a digit string, human or not."""
        draw = self.rng.random()
        if draw < self.style.human and self.pool.digits["human"]:
            return self.string("human")
        if draw < self.style.human + self.style.synthetic_digits:
            return self.string("digit")
        i = self.rng.choice(self.pool.sentences)
        return Segment(self.pool.index[i]["text"], [self.coloured(self.pool.clip(i))], [0])

    def string(self, kind: str) -> Segment:
        """One to eight digits by one voice."""
        voice = self.pool.digits[kind][self.rng.choice(sorted(self.pool.digits[kind]))]
        count = self.rng.choice((1, 1, 1, 2, 3, 4, 5, 6, 7, 8))
        digits = [self.rng.choice(sorted(voice)) for _ in range(count)]
        tilt, warp = self.rng.uniform(-1, 1), self.warp_factor()
        clips = [self.coloured(self.pool.clip(self.rng.choice(voice[digit])), tilt, warp) for digit in digits]
        gaps = [0] + [self.rng.randint(1, 60) for _ in range(count - 1)]
        return Segment(grammar.digit_string([int(digit) for digit in digits]), clips, gaps, is_string=True)

    def warp_factor(self) -> float:
        """The factor by which the mel axis is stretched, mostly 1."""
        return self.rng.uniform(0.93, 1.07) if self.rng.random() < 0.25 else 1.0

    def coloured(self, clip: np.ndarray, tilt: float | None = None, warp: float | None = None) -> np.ndarray:
        """Simulate another microphone (spectral tilt) and another speaker (stretched mel axis)."""
        tilt, warp = self.rng.uniform(-1, 1) if tilt is None else tilt, self.warp_factor() if warp is None else warp
        if warp != 1.0:
            at = np.minimum(np.arange(N_MELS) * warp, N_MELS - 1)
            low = at.astype(int)
            part = (at - low).astype(np.float32)
            clip = clip[:, low] * (1 - part) + clip[:, np.minimum(low + 1, N_MELS - 1)] * part
        tilted: np.ndarray = clip + tilt * np.linspace(-0.6, 0.6, N_MELS, dtype=np.float32)
        return tilted

    def noise_power(self, frames: int, low: float, high: float) -> np.ndarray:
        """(frames, 80) of mel power: a part of the noise bank at a random level (log10 of the amplitude)."""
        bank = self.rng.choice(self.pool.noise)
        start = self.rng.randrange(max(1, len(bank) - frames + 1))
        level = 2 * self.rng.uniform(low, high)
        power: np.ndarray = np.exp2((bank[start : start + frames].astype(np.float32) + level) * np.float32(np.log2(10)))
        return power

    def window(self, frames: int, offset: int = 0) -> Window:
        """A window of `frames` x 10 ms whose first frame is at `offset` x 10 ms of the encoder's positions."""
        if self.rng.random() < self.style.nothing:
            return self.silence(frames)
        power = np.zeros((frames, N_MELS), dtype=np.float32)
        stamped = self.rng.random() < self.style.timestamps
        tokens, text_tokens = [], []
        segments = self.rng.choice((1, 2, 3, 5, 12, 20, 20, 20))
        longest = 1.2 if self.rng.random() < 0.7 else 4.0
        at = int(100 * self.rng.uniform(0, 1.0 if self.rng.random() < 0.9 else 3.0))
        gain = self.rng.uniform(-0.8, 0.1)
        if self.rng.random() < 0.25:
            self.echo(power, min(at, MAX_ECHO), gain)
        end = at
        for count in range(segments):
            segment = self.segment()
            if segment.is_string and count:
                at += int(100 * STRING_PAUSE)
            if at + segment.frames > frames - 2:
                cut = count > 0 and stamped and at < frames - 5 and self.rng.random() < 0.8
                if cut:
                    self.place(power, segment, at, gain)
                    end = frames
                    tokens.append(self.stamp(at + PAD_FRAMES + offset))
                break
            self.place(power, segment, at, gain + self.rng.uniform(-0.2, 0.2))
            text = self.encode(segment.text)
            start = at + PAD_FRAMES
            if not count and not offset:
                start = min(start, int(100 * MAX_INITIAL_SECONDS))
            end = at = at + segment.frames
            tokens += [self.stamp(start + offset), *text, self.stamp(at - PAD_FRAMES + offset)] if stamped else text
            text_tokens += text
            at += int(100 * self.rng.uniform(0.15, longest)) + (int(100 * STRING_PAUSE) if segment.is_string else 0)
        if not text_tokens:
            return self.window(frames, offset)
        return self.finish(power, end, tokens, text_tokens, stamped)

    def echo(self, power: np.ndarray, frames: int, gain: float) -> None:
        """The end of a sentence that belongs to the previous window, because timestamps are coarse."""
        clip = self.pool.clip(self.rng.choice(self.pool.sentences))
        if frames > PAD_FRAMES:
            self.place(power, Segment("", [self.coloured(clip[-frames:])], [0]), 0, gain)

    def place(self, power: np.ndarray, segment: Segment, at: int, gain: float) -> None:
        """Add a segment's power from frame `at` on, cut at the window's end; gain is log10 of the amplitude."""
        for clip, gap in zip(segment.clips, segment.gaps, strict=True):
            at += gap
            part = clip[: max(0, len(power) - at)]
            power[at : at + len(part)] += np.exp2((part + 2 * gain) * np.float32(np.log2(10)))
            at += len(clip)

    def silence(self, frames: int) -> Window:
        """A window without speech."""
        power = np.zeros((frames, N_MELS), dtype=np.float32)
        end = self.rng.randrange(20, frames + 1)
        if self.rng.random() < 0.75:
            end = end if self.rng.random() < 0.4 else frames
            noise = self.noise_power(end, -4.5, -0.5)
            power[: len(noise)] += noise
        stamped = self.rng.random() < self.style.timestamps
        # Whisper's decoding forbids an empty first token, so a full stop is the closest to nothing without timestamps.
        dot = [] if self.rng.random() < 0.9 else self.tokenizer.encode(".")
        tokens = [self.stamp(0)] if stamped else dot
        return self.finish(power, end, tokens, [], stamped, quiet=True)

    def finish(
        self,
        power: np.ndarray,
        end: int,
        tokens: list[int],
        text_tokens: list[int],
        stamped: bool,
        quiet: bool = False,
    ) -> Window:
        """Add noise and masks, scale as Whisper does, and put the special tokens around the text."""
        t = self.tokenizer
        if not quiet and self.rng.random() < 0.7:
            noise = self.noise_power(len(power), -4.5, -2.4)
            power[: len(noise)] += noise
        mel = np.log10(np.maximum(power, 1e-10))
        if self.rng.random() < 0.06:
            mel[:, TELEPHONE_BIN:] = np.maximum(mel[:, TELEPHONE_BIN:] - self.rng.uniform(2, 6), SILENT)
        if not quiet:
            self.mask(mel)
        mel = (np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0
        if self.rng.random() < 0.6:
            # whisper.transcribe pads the last window's spectrogram with zeros rather than its audio with silence
            mel[min(len(mel), end + self.rng.choice((0, 0, 2, 5, 10, 30, 60, 100))) :] = 0.0
        english = t.to_language_token("en")
        sot = [t.sot, english, t.transcribe, *([] if stamped else [t.no_timestamps])]
        return Window(
            mel=np.ascontiguousarray(mel.T),
            tokens=[*sot, *tokens, t.eot],
            loss_from=0,
            fixed=len(sot) - 1,
            # one quiet window in ten has the target English, so that language detection on silence avoids untrained rows
            first_target=t.no_speech if quiet and self.rng.random() < 0.9 else english,
            text_tokens=text_tokens,
            stamped=stamped,
        )

    def mask(self, mel: np.ndarray) -> None:
        """Randomly mask a band of frequencies and a few frames."""
        if self.rng.random() < 0.15:
            low = self.rng.randrange(N_MELS - 10)
            mel[:, low : low + self.rng.randint(1, 10)] = SILENT
        for _ in range(len(mel) // 400):
            if self.rng.random() < 0.1:
                start = self.rng.randrange(len(mel) - 10)
                mel[start : start + self.rng.randint(1, 7)] = SILENT

    def text(self) -> str:
        """Text for a prompt: a sentence, or sometimes digits."""
        if self.rng.random() < self.style.human + self.style.synthetic_digits:
            return grammar.digit_string([self.rng.randrange(10) for _ in range(self.rng.randint(1, 8))])
        sentence: str = self.pool.index[self.rng.choice(self.pool.sentences)]["text"]
        return sentence

    def prompt(self, stamped: bool, length: int) -> list[int]:
        """`<|startofprev|>` and the last `length` tokens of earlier windows, as in `whisper.transcribe`.

        They may begin in the middle of a sentence. Timestamps, if any, restart with each window.
        """
        tokens: list[int] = []
        at = self.rng.randint(0, 3000)
        while len(tokens) < length:
            text = self.encode(self.text())
            end = at + self.rng.randint(90, 350)
            tokens += [self.stamp(at), *text, self.stamp(end)] if stamped else text
            at = self.rng.randint(0, 100) if end > 2650 else end + self.rng.randint(15, 120)
        return [self.tokenizer.sot_prev, *(tokens[-length:] if self.rng.random() < 0.8 else tokens[:length])]

    def prompted(self, window: Window, full: bool) -> Window:
        """The window with earlier text before it: the most that fits if `full`, else of random length."""
        stamped = self.rng.random() < (0.9 if window.stamped else 0.25)
        return window.after(self.prompt(stamped, PROMPT_TOKENS if full else self.rng.randint(1, PROMPT_TOKENS)))


def mels(windows: list[Window]) -> torch.Tensor:
    """(windows, 80, frames)."""
    return torch.from_numpy(np.stack([window.mel for window in windows]))
