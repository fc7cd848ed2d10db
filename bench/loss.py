"""The words that a script loses when it reads only the first segment of faster-whisper: `python -m bench loss`, about a minute.

An optimisation study of large-v3-turbo measured a word error rate of 0.145 for faster-whisper's plain mode, and 0.031 for PyTorch. Here
both transcribe the same sentences with the same weights, one and four to a recording. faster-whisper is scored once with all segments
that `WhisperModel.transcribe` yields, and once with the first segment only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import whisper

from whispercore import checkpoints
from whispercore.audio.recording import read_samples
from whispercore.engines.openai import OpenAIEngine
from whispercore.types import SAMPLE_RATE

from . import datasets, results, scores
from .datasets import Recording
from .peers import Setup
from .work import SCRATCH

SENTENCES = (1, 4)
"""Sentences in a recording."""
GAP_SECONDS = 0.75


def measure() -> dict[str, Any]:
    """Error rates by the number of sentences in a recording, of faster-whisper with its defaults and of openai-whisper
    in float32."""
    sentences = [recording for recording in datasets.manifest(datasets.HELDOUT) if "synthetic" in recording.path.stem]
    rates: dict[str, Any] = {}
    for count in SENTENCES:
        recordings = joined(sentences, count)
        references = [recording.text for recording in recordings]
        segments = faster_whisper(recordings)
        hypotheses = {
            "openai-whisper": openai_whisper(recordings),
            "faster-whisper, every segment": ["".join(texts) for texts in segments],
            "faster-whisper, first segment": ["".join(texts[:1]) for texts in segments],
        }
        rates[str(count)] = {"segments": sum(map(len, segments))} | {
            name: scores.errors(references, texts, "en") for name, texts in hypotheses.items()
        }
    return rates


def joined(sentences: Sequence[Recording], count: int) -> list[Recording]:
    """Recordings of `count` sentences each, with a pause after every sentence. Written anew at every call."""
    folder = SCRATCH / f"joined-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)
    recordings = []
    for first in range(0, len(sentences), count):
        group, path = sentences[first : first + count], folder / f"{first:03d}.flac"
        soundfile.write(path, np.concatenate([part for sentence in group for part in (read_samples(sentence.path), gap)]), SAMPLE_RATE)
        recordings.append(Recording(path, " ".join(sentence.text for sentence in group)))
    return recordings


def faster_whisper(recordings: Sequence[Recording]) -> list[list[str]]:
    """The texts of all segments of every recording, by faster-whisper's defaults: five beams, language detection, no
    VAD."""
    from faster_whisper import WhisperModel

    settings = Setup().settings("ct2", "float32")
    folder = checkpoints.converted_folder(settings, checkpoints.locate(settings), "float32")
    model = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)
    return [[segment.text for segment in model.transcribe(str(recording.path))[0]] for recording in recordings]


def openai_whisper(recordings: Sequence[Recording]) -> list[str]:
    """The texts of whisper.transcribe with five beams."""
    model = OpenAIEngine(checkpoints.load_checkpoint(checkpoints.locate(Setup().located))).model
    samples = (read_samples(recording.path) for recording in recordings)
    return [whisper.transcribe(model, clip, beam_size=5, fp16=False, verbose=None)["text"] for clip in samples]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m bench loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=results.RESULTS, metavar="DIR", help="where loss.json is saved; default: bench/results"
    )
    folder = parser.parse_args(argv).results
    origin = results.provenance()
    rates = measure()
    results.save(folder, "loss", origin, {"model": "nano", "gap_seconds": GAP_SECONDS, "dtype": "float32"}, rates)
    for count, by_reader in rates.items():
        line = ", ".join(f"{name} {errors['wer']:.1%}" for name, errors in by_reader.items() if name != "segments")
        print(f"{count} to a recording, {by_reader['segments']} segments: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
