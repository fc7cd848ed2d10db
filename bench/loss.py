"""What faster-whisper's plain mode loses, and where a loss comes from: `python -m bench loss`, about a minute.

An optimisation study of large-v3-turbo found it at a word error rate of 0.145, against 0.031 for PyTorch. Here the same weights hear the
same sentences, one and four to a recording, once with all the segments that `WhisperModel.transcribe` yields and once with the first alone.
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
from whispercore.types import SAMPLE_RATE

from . import datasets, results, scores
from .datasets import Recording
from .peers import Setup, openai_model
from .work import SCRATCH

SENTENCES = (1, 4)
"""In a recording."""
GAP_SECONDS = 0.75


def measure() -> dict[str, Any]:
    """Error rates by sentences in a recording and by reader: faster-whisper with its own defaults, openai-whisper in float32."""
    spoken = [one for one in datasets.manifest(datasets.HELDOUT) if "synthetic" in one.path.stem]
    found: dict[str, Any] = {}
    for count in SENTENCES:
        recordings = joined(spoken, count)
        said = [one.text for one in recordings]
        segments = faster_whisper(recordings)
        heard = {
            "openai-whisper": openai_whisper(recordings),
            "faster-whisper, every segment": ["".join(texts) for texts in segments],
            "faster-whisper, first segment": ["".join(texts[:1]) for texts in segments],
        }
        found[str(count)] = {"segments": sum(map(len, segments))} | {
            name: scores.errors(said, texts, "en") for name, texts in heard.items()
        }
    return found


def joined(spoken: Sequence[Recording], count: int) -> list[Recording]:
    """So many sentences in each recording, with pauses between them. Made anew."""
    folder = SCRATCH / f"joined-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)
    made = []
    for first in range(0, len(spoken), count):
        some, path = spoken[first : first + count], folder / f"{first:03d}.flac"
        soundfile.write(path, np.concatenate([part for one in some for part in (read_samples(one.path), gap)]), SAMPLE_RATE)
        made.append(Recording(path, " ".join(one.text for one in some)))
    return made


def faster_whisper(recordings: Sequence[Recording]) -> list[list[str]]:
    """The text of every segment, in faster-whisper's plain mode as it is: five beams, the language detected, no VAD."""
    from faster_whisper import WhisperModel

    settings = Setup().settings("ct2", "float32")
    folder = checkpoints.converted_folder(settings, checkpoints.locate(settings), "float32")
    model = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)
    return [[segment.text for segment in model.transcribe(str(one.path))[0]] for one in recordings]


def openai_whisper(recordings: Sequence[Recording]) -> list[str]:
    """whisper.transcribe's text, with as many beams."""
    model = openai_model(checkpoints.load_checkpoint(checkpoints.locate(Setup().located)))
    return [whisper.transcribe(model, read_samples(one.path), beam_size=5, fp16=False, verbose=None)["text"] for one in recordings]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m bench loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=results.RESULTS, metavar="DIR", help="where loss.json is kept; default: bench/results"
    )
    folder = parser.parse_args(argv).results
    origin = results.provenance()
    found = measure()
    results.save(folder, "loss", origin, {"model": "nano", "gap_seconds": GAP_SECONDS, "dtype": "float32"}, found)
    for count, seen in found.items():
        rates = ", ".join(f"{name} {rate['wer']:.1%}" for name, rate in seen.items() if name != "segments")
        print(f"{count} to a recording, {seen['segments']} segments: {rates}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
