"""Three hours in which nobody speaks: noise, hum, tones, music, silence, made by code and always the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from whispercore.types import SAMPLE_RATE, Samples

from .work import SCRATCH

HOURS = 3.0
ROUNDS = 3
"""Recordings of each kind, each with random numbers of its own."""

Chance = np.random.Generator


def made(hours: float) -> list[Path]:
    """WAV files of every kind in turn, as long as `hours` together. Made once."""
    seconds = max(1, round(3600 * hours / (ROUNDS * len(KINDS))))
    folder = SCRATCH / f"sounds-{seconds}s"
    folder.mkdir(parents=True, exist_ok=True)
    return [_file(folder, name, number, seconds) for number in range(ROUNDS) for name in KINDS]


def _file(folder: Path, name: str, number: int, seconds: int) -> Path:
    path = folder / f"{name}-{number}.wav"
    if not path.exists():
        part = path.with_suffix(f".{name}.part")
        soundfile.write(part, sound(name, seconds, number), SAMPLE_RATE, format="WAV", subtype="PCM_16")
        part.rename(path)
    return path


def sound(name: str, seconds: int, number: int) -> Samples:
    """One kind of sound, float32, shape (16,000 × seconds,), at most 0.5 loud; equal arguments give equal samples."""
    chance = np.random.default_rng([list(KINDS).index(name), number])
    samples = KINDS[name](seconds * SAMPLE_RATE, chance)
    level = float(chance.uniform(0.05, 0.5))
    loudest = float(np.abs(samples).max())
    return (samples * (level / loudest if loudest else 0.0)).astype(np.float32)


def _white(count: int, chance: Chance) -> Samples:
    return chance.standard_normal(count, dtype=np.float32)


def _coloured(count: int, chance: Chance, power: float) -> Samples:
    """Noise whose power falls with frequency to this power: 1 is pink, 2 is brown."""
    spectrum = np.fft.rfft(_white(count, chance))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-power / 2)
    return np.fft.irfft(spectrum, count).astype(np.float32)


def _gusts(count: int, chance: Chance) -> Samples:
    """Wind and traffic: pink noise that swells and dies away."""
    knots = np.arange(0, count + 8000, 8000)
    swell = np.interp(np.arange(count), knots, chance.random(len(knots)) ** 3)
    return _coloured(count, chance, 1.0) * swell.astype(np.float32)


def _hum(count: int, chance: Chance, mains: float) -> Samples:
    """Mains hum with its harmonics, over a little noise."""
    weights = chance.random(12) / np.arange(1, 13)
    hum = 0.02 * _white(count, chance)
    for number, weight in enumerate(weights, 1):
        hum += weight * _sine(count, mains * number)
    return hum


def _sine(count: int, hertz: float) -> Samples:
    wave: Samples = np.sin(2 * np.pi * hertz / SAMPLE_RATE * np.arange(count)).astype(np.float32)
    return wave


def _tones(count: int, chance: Chance) -> Samples:
    """Telephones and machines: two tones at once, a sweep, a ring, with silence between."""
    found = np.zeros(count, np.float32)
    at = 0
    while at < count:
        size = min(int(chance.uniform(0.1, 2.0) * SAMPLE_RATE), count - at)
        low, high = chance.uniform(200, 1000), chance.uniform(1000, 3500)
        kind = chance.integers(3)
        if kind == 0:
            found[at : at + size] = _sine(size, low) + _sine(size, high)
        elif kind == 1:
            found[at : at + size] = np.sin(2 * np.pi * np.cumsum(np.linspace(low, high, size)) / SAMPLE_RATE)
        else:
            found[at : at + size] = _sine(size, low) * (_sine(size, 20.0) > 0)
        at += size + int(chance.uniform(0.05, 1.5) * SAMPLE_RATE)
    return found


BEAT = SAMPLE_RATE // 2
SCALE = (0, 3, 5, 7, 10, 12)
"""Semitones of a pentatonic scale: any of its notes go together."""


def _note(semitone: float, size: int, fall: float) -> Samples:
    """A plucked string of five harmonics; `fall`: seconds until it has died away to a third."""
    pitch = 110 * 2 ** (semitone / 12)
    note = np.zeros(size, np.float32)
    for number in range(1, 6):
        note += _sine(size, pitch * number) / number**1.5
    note *= np.exp(-np.arange(size) / (fall * SAMPLE_RATE))
    return note


def _chords(count: int, chance: Chance) -> Samples:
    """A chord of four notes every two seconds."""
    found = np.zeros(count, np.float32)
    for at in range(0, count, 4 * BEAT):
        size = min(4 * BEAT, count - at)
        for semitone in chance.choice(SCALE, 4, replace=False):
            found[at : at + size] += _note(semitone + 12 * chance.integers(3), size, 1.5)
    return found


def _arpeggio(count: int, chance: Chance) -> Samples:
    """Four notes a second, up and down the scale."""
    found = np.zeros(count, np.float32)
    for at in range(0, count, BEAT // 2):
        size = min(BEAT, count - at)
        found[at : at + size] += _note(chance.choice(SCALE) + 12 * chance.integers(1, 4), size, 0.2)
    return found


def _drums(count: int, chance: Chance) -> Samples:
    """A bass drum on the beat, a snare on every other, a cymbal between."""
    found = np.zeros(count, np.float32)
    for number, at in enumerate(range(0, count, BEAT // 2)):
        size = min(BEAT // 2, count - at)
        fade = np.exp(-np.arange(size) / (0.05 * SAMPLE_RATE))
        if number % 2:
            hit = 0.2 * _white(size, chance) * fade**2
        elif number % 4:
            hit = 0.6 * _white(size, chance) * fade
        else:
            hit = np.sin(2 * np.pi * np.cumsum(np.linspace(120, 40, size)) / SAMPLE_RATE) * fade
        found[at : at + size] += hit
    return found


def _band(count: int, chance: Chance) -> Samples:
    """All of them play."""
    return _chords(count, chance) + _arpeggio(count, chance) + 2 * _drums(count, chance)


KINDS: dict[str, Callable[[int, Chance], Samples]] = {
    "white-noise": _white,
    "pink-noise": lambda count, chance: _coloured(count, chance, 1.0),
    "brown-noise": lambda count, chance: _coloured(count, chance, 2.0),
    "gusts": _gusts,
    "hum-50Hz": lambda count, chance: _hum(count, chance, 50.0),
    "hum-60Hz": lambda count, chance: _hum(count, chance, 60.0),
    "tones": _tones,
    "chords": _chords,
    "arpeggio": _arpeggio,
    "drums": _drums,
    "band": _band,
    "silence": lambda count, chance: np.zeros(count, np.float32),
}
