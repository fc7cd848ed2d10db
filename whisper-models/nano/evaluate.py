"""Measure an exported model on the held-out sets with openai-whisper's own transcribe, in float32.

    python evaluate.py ../nano.pt --fsdd fsdd-4-speakers.zip --output results.json
    python evaluate.py --card README.md --output results.json

The second form writes the table of results into the model card, between its two markers.
WER is counted after lower-casing and dropping punctuation, no more: Whisper's own normaliser joins "one two" to "12".
"""

import argparse
import json
import platform
import re
import subprocess
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import whisper
from heldout import Recording, Span, sets
from whisper.audio import FRAMES_PER_SECOND, log_mel_spectrogram, pad_or_trim
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

TOLERANCE = 0.3
"""Seconds a timestamp may be off."""

BEGIN, END = "<!-- results -->", "<!-- /results -->"
Words = list[str]


def words(text: str) -> Words:
    """Lower case, no punctuation."""
    return re.sub(r"[^\w' ]", " ", text.lower()).split()


def edits(reference: Words, hypothesis: Words) -> int:
    """The word edit distance."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        above, row[0] = row[0], i
        for j, word in enumerate(hypothesis, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (expected != word))
    return row[-1]


def transcribe(model: Whisper, recording: Recording, **options: Any) -> dict[str, Any]:
    """openai-whisper's transcribe."""
    torch.manual_seed(0)
    result: dict[str, Any] = whisper.transcribe(model, recording.samples, fp16=False, verbose=None, **options)
    return result


def stamps(segment: dict[str, Any]) -> tuple[float, float]:
    """Start and end as the model said them: transcribe itself reports a window's only segment from the window's start."""
    first = get_tokenizer(True).timestamp_begin
    said = [segment["seek"] / FRAMES_PER_SECOND + 0.02 * (t - first) for t in segment["tokens"] if t >= first]
    return (said[0], said[-1]) if len(said) > 1 else (segment["start"], segment["end"])


def in_time(truth: list[Span], predicted: list[dict[str, Any]]) -> int:
    """How many true segments have a predicted one whose start and end are both within the tolerance."""

    def close(span: Span, segment: dict[str, Any]) -> bool:
        start, end = stamps(segment)
        return max(abs(span.start - start), abs(span.end - end)) <= TOLERANCE

    return sum(any(close(span, segment) for segment in predicted) for span in truth)


def spoken_set(model: Whisper, recordings: list[Recording], show: int = 0, **options: Any) -> dict[str, float]:
    """WER and timestamps over recordings of speech, greedy."""
    errors = total = on_time = segments = right = 0
    for recording in recordings:
        result = transcribe(model, recording, **{"temperature": 0.0, "language": "en", **options})
        wrong = edits(words(recording.text), words(result["text"]))
        if wrong and show:
            show -= 1
            print(f"  {recording.voice}: {recording.text!r} heard as {result['text']!r}")
        errors, right = errors + wrong, right + (wrong == 0)
        total, segments = total + len(words(recording.text)), segments + len(recording.segments)
        on_time += in_time(recording.segments, result["segments"])
    return {
        "recordings": len(recordings),
        "words": total,
        "wer": round(errors / total, 4),
        "recordings_without_error": right,
        "segments": segments,
        "segments_in_time": round(on_time / segments, 4),
    }


def no_speech_probability(model: Whisper, recording: Recording) -> float:
    """The probability of <|nospeech|> for the recording's first window."""
    mel = log_mel_spectrogram(pad_or_trim(torch.from_numpy(recording.samples)))
    result = whisper.decode(model, mel, whisper.DecodingOptions(language="en", fp16=False, sample_len=2))
    assert isinstance(result, whisper.DecodingResult)
    return float(result.no_speech_prob)


def quiet_set(model: Whisper, recordings: list[Recording]) -> dict[str, float]:
    """Words made up where there are none, with transcribe's defaults."""
    made_up = [len(words(transcribe(model, recording)["text"])) for recording in recordings]
    probabilities = sorted(no_speech_probability(model, recording) for recording in recordings)
    return {
        "recordings": len(recordings),
        "recordings_with_words": sum(count > 0 for count in made_up),
        "words": sum(made_up),
        "no_speech_prob_min": round(probabilities[0], 4),
        "no_speech_prob_median": round(probabilities[len(probabilities) // 2], 4),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model name")]
    return names[0] if names else platform.processor()


def provenance() -> dict[str, Any]:
    """Where and with what the figures were made."""
    packages = {name: version(name) for name in ("torch", "openai-whisper", "numpy", "soundfile", "soxr")}
    machine = f"{processor()}, {torch.get_num_threads()} threads"
    today = date.today().isoformat()
    return {"date": today, "machine": machine, "python": platform.python_version(), "packages": packages}


def measure(path: Path, archive: Path, seed: int, limit: int | None, show: int) -> dict[str, Any]:
    """Every figure of the card."""
    model, results = whisper.load_model(str(path), device="cpu"), {}
    recorded = sets(archive, seed, limit)
    for name in (*ROWS, "quiet"):
        began = time.time()
        if name == "quiet":
            results[name] = quiet_set(model, recorded[name])
        else:
            _, recordings, options = ROWS[name]
            results[name] = spoken_set(model, recorded[recordings], show, **options)
        print(f"{name}: {json.dumps(results[name])} {time.time() - began:.0f} s", flush=True)
    return {"model_bytes": path.stat().st_size, "seed": seed, "provenance": provenance(), "results": results}


ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sentences": ("Held-out sentences, training voices, one a recording", "sentences", {}),
    "packed": ("Held-out sentences, training voices, several in 28 s", "packed", {}),
    "long": ("The same in 80 s, each window after the text before it", "long", {"condition_on_previous_text": True}),
    "long_unconditioned": ("The same in 80 s, each window by itself", "long", {"condition_on_previous_text": False}),
    "voices": ("Held-out sentences, held-out voices, one a recording", "voices", {}),
    "digits": ("FSDD's held-out speaker, single digits", "digits", {}),
    "strings": ("FSDD's held-out speaker, strings of 2 to 8 digits", "strings", {}),
}
"""Each row of the table: its title, its recordings, and the options that `transcribe` gets."""


def table(measured: dict[str, Any]) -> str:
    """The card's results in Markdown."""
    lines = ["| Set | Recordings | Words | WER | Segments within 0.3 s |", "|---|---:|---:|---:|---:|"]
    for name, (title, _, _) in ROWS.items():
        row = measured["results"][name]
        figures = f"{row['recordings']} | {row['words']} | {row['wer']:.1%} | {row['segments_in_time']:.1%}"
        lines.append(f"| {title} | {figures} |")
    quiet, source = measured["results"]["quiet"], measured["provenance"]
    lines += [
        "",
        f"Silence, noise, hum and tones ({quiet['recordings']} recordings of 2 to 40 s, all defaults): words in "
        f"{quiet['recordings_with_words']} of them, {quiet['words']} words in all; <|nospeech|> has a "
        f"probability of at least {quiet['no_speech_prob_min']:.3f}, in the median {quiet['no_speech_prob_median']:.3f}.",
        "",
        f"File: {measured['model_bytes'] / 1e6:.1f} MB. Measured {source['date']} on {source['machine']}, "
        + ", ".join(f"{name} {number}" for name, number in source["packages"].items())
        + f", Python {source['python']}.",
    ]
    return "\n".join(lines)


def write_card(card: Path, measured: dict[str, Any]) -> None:
    """Put the table between the card's markers."""
    before, rest = card.read_text().split(BEGIN)
    card.write_text(f"{before}{BEGIN}\n{table(measured)}\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--fsdd", type=Path)
    parser.add_argument("--output", type=Path, help="the JSON file of results")
    parser.add_argument("--card", type=Path, help="write the table of --output into this card instead of measuring")
    parser.add_argument("--limit", type=int, help="the number of recordings of each set")
    parser.add_argument("--show", type=int, default=0, help="the number of mistakes of each set to print")
    parser.add_argument("--seed", type=int, default=2025)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.card:
        write_card(args.card, json.loads(args.output.read_text()))
        return
    measured = measure(args.model, args.fsdd, args.seed, args.limit, args.show)
    if args.output:
        args.output.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
