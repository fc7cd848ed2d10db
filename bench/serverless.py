"""The Lambda function under the Runtime API emulator, where only /tmp can be written: cold starts, models and precisions,
memory and cores, and a recording of 30 minutes within the 900 s of an invocation.

python -m bench lambda [--python PYTHON]     # PYTHON: of an environment with deploy/lambda/requirements*.txt only
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from whispercore import checkpoints
from whispercore.audio.recording import read_samples
from whispercore.checkpoints import load_checkpoint
from whispercore.checkpoints.conversion import convert
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Samples

from . import datasets, results, scores
from .report.page import Block, markdown
from .results import RESULTS, spread
from .work import ROOT, SCRATCH, checkpoint

NAME = "lambda"
PAGE, BLOCK = ROOT / "docs" / "lambda.md", Block(NAME)
FUNCTION = ROOT / "deploy" / "lambda"
SANDBOX = (
    "bwrap",
    "--die-with-parent",
    "--ro-bind",
    "/",
    "/",
    "--dev",
    "/dev",
    "--remount-ro",
    "/dev",
    "--proc",
    "/proc",
    "--tmpfs",
    "/tmp",
    # a checkout or an environment in /tmp, such as that of a CI run, stays visible
    *(word for path in (str(ROOT), sys.prefix, sys.base_prefix) if path.startswith("/tmp/") for word in ("--ro-bind", path, path)),
    "--unshare-net",
)
"""Everything but /tmp is read-only, there is no shared memory in /dev/shm, and the network is a loopback of its own."""
MEMORY_LIMIT = 10 << 30
STARTS = 3
CLIP_SECONDS, LONG_SECONDS, WHOLE_SECONDS = 10, 120, 1800
RANDOM_SECONDS, RANDOM_TOKENS = 60, 100
"""For random weights: the length of the recording, and the tokens decoded from each window of 30 s."""
TIMEOUT = 900.0


@dataclass(frozen=True, slots=True)
class Row:
    """A model, its weights (`real` or `random`), its precision, and the function's memory in MB."""

    model: str
    weights: str
    precision: str
    memory: int = 10_240


ROWS = (
    Row("base", "real", "int8"),
    Row("tiny.en", "real", "int8"),
    Row("small", "random", "int8"),
    Row("base", "real", "int8", 1769),
    Row("base", "real", "float32"),
    Row("tiny.en", "real", "float32"),
    Row("large-v3-turbo", "random", "int8"),
    Row("medium", "random", "int8"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: measures, saves, writes the tables into the page. Exit status 0, or 1 when the function failed."""
    parser = argparse.ArgumentParser(prog="python -m bench lambda", description="Measure the Lambda function under an emulator.")
    parser.add_argument("--python", default=sys.executable, help="of an environment with the function's requirements only")
    parser.add_argument("--table", action="store_true", help="only write the tables of the saved result into the page")
    parsed = parser.parse_args(argv)
    if not parsed.table:
        origin = results.provenance()
        settings = {"starts": STARTS, "random_tokens": RANDOM_TOKENS, "timeout": TIMEOUT, "sandbox": bool(shutil.which(SANDBOX[0]))}
        try:
            for result in measured(parsed.python, lambda line: print(f"{NAME}: {line}", file=sys.stderr, flush=True)):
                results.save(RESULTS, NAME, origin, settings, result)
        except RuntimeError as error:
            print(f"{NAME}: {error}", file=sys.stderr)
            return 1
    BLOCK.put(PAGE, table())
    return 0


def measured(python: str, log: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The result so far, after each row: the measurement takes long. Raises RuntimeError when the function fails."""
    samples, text = speech(WHOLE_SECONDS)
    started, (whole,) = run(Row("base", "real", "int8"), python, [_payload(samples)])
    log(f"{WHOLE_SECONDS} s of speech in {whole['seconds']:.0f} s")
    wer = scores.errors([text], [whole["result"]["text"]], "en")["whisper_normalizer"]["wer"]
    figures = {"audio_seconds": WHOLE_SECONDS, "wer": wer, **_figures(whole), "init_seconds": started["init_seconds"]}
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        rows.append({**asdict(row), **_measure(row, python)})
        log(f"{row}: {rows[-1]['speed']:.1f} s of audio a second")
        yield {"rows": rows, "whole": figures}


def run(row: Row, python: str, events: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
    """The start, and what became of each event. Raises RuntimeError when the function fails."""
    variables = {
        "PYTHONPATH": f"{ROOT / 'src'}:{FUNCTION}",
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "WHISPER_MODEL": str(_model(row)),
        "WHISPER_DTYPE": row.precision,
        **({"WHISPER_FIXED_TOKENS": str(RANDOM_TOKENS)} if row.weights == "random" else {}),
    }
    sandbox = [*SANDBOX, "prlimit", f"--as={MEMORY_LIMIT}"] if shutil.which(SANDBOX[0]) else []
    emulator = [python, str(FUNCTION / "runtime_emulator.py"), "--timeout", str(TIMEOUT), "--memory", str(row.memory)]
    command = [*sandbox, *emulator, python, "-m", "awslambdaric", "lambda_function.lambda_handler"]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    done = subprocess.run(command, env=variables, input=lines, capture_output=True, text=True)
    started, *outcomes = [json.loads(line) for line in done.stdout.splitlines()] or [{}]
    if failed := [outcome["error"] for outcome in (started, *outcomes) if "error" in outcome]:
        raise RuntimeError(f"{row}: {failed[0]}")
    if len(outcomes) != len(events):
        raise RuntimeError(f"{row}: the emulator ended with status {done.returncode}: {done.stderr[-1000:]}")
    return started, outcomes


def speech(seconds: int) -> tuple[Samples, str]:
    """Readings from LibriSpeech of this duration, one after the other, and their words. Raises ConfigurationError."""
    readings = [*datasets.named("test-clean").recordings, *datasets.named("chapters").recordings]
    pieces: list[Samples] = []
    texts: list[str] = []
    missing, before = seconds * SAMPLE_RATE, -1
    while missing != before:  # again and again, until none fits any more
        before = missing
        for recording in readings:
            samples = read_samples(recording.path)
            if len(samples) <= missing:
                pieces.append(samples)
                texts.append(recording.text)
                missing -= len(samples)
    return np.concatenate([*pieces, np.zeros(missing, np.float32)]), " ".join(texts)


def table(folder: Path = RESULTS) -> str:
    """The tables of the saved result. Raises ValueError when there is none."""
    content = results.load(folder, NAME)
    if content is None:
        raise ValueError(f"{folder} has no {NAME}.json: run python -m bench {NAME}")
    origin, result = content["provenance"], content["result"]
    machine, whole, load = origin["machine"], result["whole"], origin["load_average"][0]
    commit = f"`{origin['commit'][:7]}`{' with changes' if origin['dirty'] else ''}"
    starts = content["settings"]["starts"]
    slower = f"The machine had other work (load average {load:g}), which makes all times by the clock several times as long.\n"
    busy = slower if load > machine["cores"] else ""
    lines = [
        f"Measured by `python -m bench {NAME}` at {commit} on {machine['cores']} cores of an {machine['cpu']}, no GPU, "
        f"ctranslate2 {origin['versions']['ctranslate2']}.\n"
        f"{busy}Speed is seconds of audio a second by the clock. Processor is seconds of one core for a minute of audio.\n"
        f"Init and first reply are medians of {starts} cold starts, with init's processor time in brackets; the first reply is to "
        f"{CLIP_SECONDS} s of audio.\n\n",
        markdown(
            {"model": "---", "weights": "---", "precision": "---", "memory": "--:", "cores": "--:"}
            | {"init": "--:", "first reply": "--:", "speed": "--:", "processor": "--:", "peak memory": "--:"},
            [_cells(row) for row in result["rows"]],
        ),
        f"\n{whole['audio_seconds'] / 60:.0f} minutes of LibriSpeech with base in int8, two cores: {whole['seconds']:.0f} s of the "
        f"{TIMEOUT:.0f} s of an invocation\n({whole['processor_seconds']:.0f} s of processor time), {whole['peak_mb']:,} MB, "
        f"{100 * whole['wer']:.1f}% errors.\n",
    ]
    return "".join(lines)


def _measure(row: Row, python: str) -> dict[str, Any]:
    """Cold starts, then a long recording on a warm function."""
    options = {} if row.weights == "real" else {"language": "en", "vad_filter": False, "temperature": [0.0], "no_speech_threshold": None}
    seconds = LONG_SECONDS if row.weights == "real" else RANDOM_SECONDS
    samples, text = speech(seconds)
    clip = _payload(samples[: CLIP_SECONDS * SAMPLE_RATE], **options)
    starts = [run(row, python, [clip]) for _ in range(STARTS - 1)]
    started, (first, long) = run(row, python, [clip, _payload(samples, **options)])
    starts.append((started, [first]))
    rates = scores.errors([text], [long["result"]["text"]], "en") if row.weights == "real" else None
    return {
        "cores": min(-(-row.memory // 1769), len(os.sched_getaffinity(0))),
        "init_seconds": spread(start["init_seconds"] for start, _ in starts),
        "init_processor_seconds": spread(start["processor_seconds"] for start, _ in starts),
        "first_seconds": spread(outcomes[0]["seconds"] for _, outcomes in starts),
        "audio_seconds": seconds,
        "speed": round(seconds / long["seconds"], 2),
        "wer": rates["whisper_normalizer"]["wer"] if rates else None,
        **_figures(long),
    }


def _figures(outcome: dict[str, Any]) -> dict[str, Any]:
    return {name: outcome[name] for name in ("seconds", "processor_seconds", "peak_mb")}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    median = {name: row[f"{name}_seconds"]["median"] for name in ("init", "first")}
    return (
        row["model"],
        row["weights"],
        row["precision"],
        f"{row['memory']:,} MB",
        str(row["cores"]),
        f"{median['init']:.1f} s ({row['init_processor_seconds']['median']:.1f} s)",
        f"{median['first']:.1f} s",
        f"{row['speed']:.1f}",
        f"{row['processor_seconds'] / row['audio_seconds'] * 60:.1f} s",
        f"{row['peak_mb']:,} MB",
    )


def _model(row: Row) -> Path:
    """The row's model in CTranslate2's form, in a folder that is converted once."""
    folder = SCRATCH / "lambda" / f"{row.model}-{row.weights}-{row.precision}"
    if not folder.exists():
        path = checkpoint(row.model) if row.weights == "random" else checkpoints.locate(Settings.load({"model": row.model}))
        loaded = load_checkpoint(path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert(loaded.dims, loaded.state, folder, row.precision, alignment_heads=loaded.alignment_heads)
    return folder


def _payload(samples: Samples, **options: Any) -> dict[str, Any]:
    """A direct invocation. Opus at 16 kbit/s, as 30 minutes in a lossless format exceed the 6 MB of an invocation."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, bit_rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return {"audio": base64.b64encode(file.getvalue()).decode(), **options}
