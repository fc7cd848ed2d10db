"""Render the nano model's training pool: synthetic sentences and digits (espeak-ng, flite), human digits (FSDD).

A pool is one .npz of log-mel power, so that training composes its 30 s windows without touching audio again.
Needs the programs espeak-ng and flite.

    python generate.py --sentences 9000 --fsdd fsdd-4-speakers.zip --seed 1 pool.npz
"""

import argparse
import io
import json
import multiprocessing
import random
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import grammar
import numpy as np
import soundfile
import soxr
import torch
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, mel_filters

PAD_FRAMES = 2
"""Frames of silence before and after the sound in every clip, so that no STFT window is cut."""

TRIM_LEVEL = 0.005
TRIM_MARGIN = 160


@dataclass(frozen=True)
class Clip:
    """One utterance: float32 samples at 16 kHz, trimmed to the sound."""

    text: str
    kind: str  # "sentence", "digit" (synthetic) or "human"
    voice: str
    samples: np.ndarray


def trim(samples: np.ndarray, level: float = TRIM_LEVEL) -> np.ndarray:
    """Cut leading and trailing silence, except for 10 ms."""
    loud = np.flatnonzero(np.abs(samples) > level)
    trimmed: np.ndarray = samples[max(0, loud[0] - TRIM_MARGIN) : loud[-1] + TRIM_MARGIN] if len(loud) else samples[:0]
    return trimmed


def espeak(text: str, voice: str, words_per_minute: int, pitch: int) -> np.ndarray:
    """Speak with espeak-ng → float32 samples at 16 kHz."""
    command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "--stdout", text]
    spoken = subprocess.run(command, capture_output=True, check=True).stdout
    samples, rate = soundfile.read(io.BytesIO(spoken), dtype="float32")
    resampled_speech: np.ndarray = soxr.resample(samples, rate, SAMPLE_RATE)
    return resampled_speech


def flite(text: str, voice: str, stretch: float = 1.0) -> np.ndarray:
    """Speak with flite → float32 samples at 16 kHz."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as out:
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-t", text, "-o", out.name]
        subprocess.run(command, capture_output=True, check=True)
        samples, rate = soundfile.read(out.name, dtype="float32")
    resampled_speech: np.ndarray = soxr.resample(samples, rate, SAMPLE_RATE)
    return resampled_speech


def speak(text: str, voice: str, rng: random.Random) -> np.ndarray:
    """Speak `text` at a random pace and pitch; a voice is "flite-NAME" or an espeak-ng voice."""
    if voice.startswith("flite-"):
        return trim(flite(text, voice.removeprefix("flite-"), rng.uniform(0.85, 1.2)))
    return trim(espeak(text, voice, rng.randint(135, 185), rng.randint(25, 75)))


def any_voice(rng: random.Random) -> str:
    """A training voice; flite, the most natural, speaks a third."""
    return "flite-" + rng.choice(grammar.FLITE_VOICES) if rng.random() < 0.33 else rng.choice(grammar.ESPEAK_VOICES)


def resampled(samples: np.ndarray, factor: float) -> np.ndarray:
    """Speed, pitch and formants multiplied by `factor`, as by a faster tape."""
    faster: np.ndarray = soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE)
    return faster


def one_sentence(seed: int) -> Clip:
    """A synthetic sentence. Half of them are resampled to another speed, which varies each voice's formants."""
    rng = random.Random(seed)
    voice, text = any_voice(rng), grammar.sentence(rng)
    samples = speak(text, voice, rng)
    return Clip(text, "sentence", voice, resampled(samples, rng.uniform(0.88, 1.14)) if rng.random() < 0.5 else samples)


def one_digit(seed: int) -> Clip:
    """A synthetic single digit, for strings of digits by one voice."""
    rng = random.Random(seed)
    voice, digit = any_voice(rng), rng.randrange(10)
    samples = speak(grammar.DIGITS[digit], voice, rng)
    return Clip(str(digit), "digit", voice, resampled(samples, rng.uniform(0.86, 1.16)))


def human_digits(archive: Path, speakers: tuple[str, ...], copies: int, seed: int) -> list[Clip]:
    """FSDD's recordings of `speakers`, each in `copies` tape speeds."""
    rng, clips = random.Random(seed), []
    with zipfile.ZipFile(archive) as files:
        for name in sorted(n for n in files.namelist() if n.endswith(".flac")):
            digit, speaker, _ = Path(name).stem.split("_")
            if speaker not in speakers:
                continue
            samples, rate = soundfile.read(io.BytesIO(files.read(name)), dtype="float32")
            samples = soxr.resample(samples, rate, SAMPLE_RATE)
            samples = trim(samples / max(1e-3, float(np.abs(samples).max())) * 0.5, 0.015)
            factors = [1.0] + [rng.uniform(0.82, 1.2) for _ in range(copies - 1)]
            clips += [Clip(digit, "human", speaker, resampled(samples, f) if f != 1.0 else samples) for f in factors]
    return clips


def log_mel_power(samples: np.ndarray) -> np.ndarray:
    """(samples,) → float16 (frames, 80): log10 of the mel power, before Whisper's clamping and scaling."""
    padded = torch.from_numpy(np.pad(samples.astype(np.float32), PAD_FRAMES * HOP_LENGTH))
    stft = torch.stft(padded, N_FFT, HOP_LENGTH, window=torch.hann_window(N_FFT), return_complex=True)
    power = mel_filters("cpu", 80) @ stft[..., :-1].abs().square()
    log_power: np.ndarray = power.clamp(min=1e-10).log10().T.to(torch.float16).numpy()
    return log_power


def hum(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Mains hum or a few steady or beeping tones."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    if rng.random() < 0.5:
        base, orders = rng.choice([50.0, 60.0]) * rng.uniform(0.98, 1.02), np.arange(1, rng.integers(2, 20))
        harmonics: np.ndarray = sum(np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6)) / k ** rng.uniform(0.3, 1.5) for k in orders)
        return harmonics
    tones: np.ndarray = sum(np.sin(2 * np.pi * rng.uniform(80, 5000) * time) for _ in range(rng.integers(1, 4)))
    if rng.random() < 0.5:
        return tones
    beeps: np.ndarray = tones * (np.sin(2 * np.pi * rng.uniform(0.1, 2) * time) > rng.uniform(-1, 0.5))
    return beeps


def coloured(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Noise with a random spectral slope (white to brown), sometimes swelling or clicking."""
    count = int(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 20)
    noise = np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 1.1), count)
    kind = rng.random()
    if kind < 0.3:
        noise *= 1 + 0.9 * np.sin(2 * np.pi * rng.uniform(0.05, 3) * np.arange(count) / SAMPLE_RATE)
    elif kind < 0.5:
        noise *= np.repeat(rng.random(count // 800 + 1) < 0.05, 800)[:count] + 0.02
    return noise


def noises(count: int, seed: int, seconds: float = 30.0) -> np.ndarray:
    """float16 (count, frames, 80): log-mel power of noises and hums, each scaled to a standard deviation of 1."""
    rng = np.random.default_rng(seed)
    bank = [(hum if index % 3 == 0 else coloured)(rng, seconds) for index in range(count)]
    return np.stack([log_mel_power(x / (x.std() + 1e-9))[PAD_FRAMES:-PAD_FRAMES] for x in bank])


def render(job: tuple[str, int]) -> tuple[dict[str, str], np.ndarray]:
    """A (kind, seed) → what the clip is, and its log-mel power."""
    clip = (one_sentence if job[0] == "sentence" else one_digit)(job[1])
    return describe(clip), log_mel_power(clip.samples)


def describe(clip: Clip) -> dict[str, str]:
    """The part of a clip that goes into the pool's index."""
    return {"text": clip.text, "kind": clip.kind, "voice": clip.voice}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sentences", type=int, default=9000)
    parser.add_argument("--digits", type=int, default=4000, help="single synthetic digits")
    parser.add_argument("--noises", type=int, default=90)
    parser.add_argument("--fsdd", type=Path, help="the Free Spoken Digit Dataset as a zip of fsdd/DIGIT_SPEAKER_N.flac")
    parser.add_argument("--copies", type=int, default=6, help="tape speeds of each human digit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = args.seed * 1_000_000
    jobs = [("sentence", base + i) for i in range(args.sentences)]
    jobs += [("digit", base + 500_000 + i) for i in range(args.digits)]
    with multiprocessing.Pool(args.processes) as workers:
        rendered = workers.map(render, jobs, chunksize=50)
    if args.fsdd:
        human = human_digits(args.fsdd, grammar.TRAINING_SPEAKERS, args.copies, args.seed)
        rendered += [(describe(clip), log_mel_power(clip.samples)) for clip in human]
    lengths = np.array([len(mel) for _, mel in rendered])
    np.savez(
        args.output,
        index=json.dumps([about for about, _ in rendered]),
        lengths=lengths,
        mel=np.concatenate([mel for _, mel in rendered]),
        noise=noises(args.noises, args.seed),
    )
    print(f"{len(rendered)} clips, {lengths.sum() / 100 / 3600:.2f} h")


if __name__ == "__main__":
    main()
