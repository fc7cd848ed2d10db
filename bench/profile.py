"""Processor time of each stage of a window of real speech: `python -m bench.profile` writes profile.md's table.

Figures are processor seconds on one thread, the minimum of several repetitions, which other load on the machine changes least.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if not __package__:  # run as a file: the path has this folder instead of the package's
    sys.path[0:1] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "src")]
if "torch" not in sys.modules:
    os.environ["OMP_NUM_THREADS"] = "1"

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from whisper.model import ModelDimensions

from bench import datasets, results
from bench.report.page import Block
from bench.results import RESULTS, cpu_model
from bench.work import ROOT
from whispercore import checkpoints
from whispercore.api.fields import RAW_FIELD
from whispercore.api.reply import render
from whispercore.api.request import parse
from whispercore.audio.cutting import cut
from whispercore.audio.packing import pack_chunks
from whispercore.audio.recording import open_recording
from whispercore.audio.spectrogram import log_mel_arrays
from whispercore.engines.ct2 import CTranslate2Engine
from whispercore.engines.ct2 import load as load_ct2
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.types import Decoded, Decoding, Transcript, Window

PAGE = Path(__file__).resolve().parent / "profile.md"
REPEAT, TOGETHER = 3, 4
"""Repetitions, and the windows in a batch of one core: half of 8 on two cores."""
POSITIONS = 1500
DECODING = Decoding(language="en", timestamps=False, alignment="all")
"""That of strategy `chunked`."""
CHAPTER = "672-122797"
"""The recording whose windows are measured."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a window: processor seconds, and the minimum by arithmetic or memory where it is known."""

    name: str
    seconds: float
    limit: float | None = None
    remark: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0. Measures, saves results/profile-MODEL.json, writes the page's table."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--model", default="base", help="a checkpoint in whisper-models (default: %(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    origin, machine = results.provenance(), measure_machine()
    measured = measure(arguments.model, datasets.speech_folder() / "librispeech-chapters" / f"{CHAPTER}.ogg", machine)
    settings = {"model": arguments.model, "recording": f"LibriSpeech chapter {CHAPTER}", "together": TOGETHER}
    kind = results.processor_kind(origin["machine"]["flags"])
    results.save(RESULTS, f"profile-{arguments.model}{kind}", origin, settings, {"machine": machine, **asdict(measured)})
    text = page(arguments.model, measured, machine, origin)
    if not kind:  # the page has the table of a processor with bfloat16 instructions
        Block("profile").put(PAGE, text)
    print(text)
    return 0


def minimum(run: Callable[[], object], repeat: int = REPEAT) -> float:
    """Processor seconds of this process for a run: the minimum of several runs after a first one that is not
    measured."""
    run()
    seconds = []
    for _ in range(repeat):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)


def measure_machine() -> dict[str, float]:
    """The limits of one core: GFLOP/s of matrix products of the encoder's size, GB/s of reading memory."""
    speeds = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = torch.randn(POSITIONS, 512).to(dtype), torch.randn(512, 2048).to(dtype)
        with torch.inference_mode():
            seconds = minimum(lambda a=a, b=b: [a @ b for _ in range(4)])  # type: ignore[misc]
        speeds[f"{name}_gflops"] = round(4 * 2 * POSITIONS * 512 * 2048 / seconds / 1e9, 1)
    large = np.ones(64_000_000, np.float32)
    speeds["read_gbs"] = round(large.nbytes / minimum(large.sum) / 1e9, 1)
    return speeds


@dataclass(frozen=True, slots=True)
class Measured:
    """The stages of a window, in order. `seconds`, `tokens`: of audio and text in a window, on average. `lone`: processor
    seconds of a window that is decoded by itself. `engine`: what it says of itself."""

    stages: list[Stage]
    seconds: float
    tokens: float
    lone: float
    engine: dict[str, str | int | float | bool]


def measure(model: str, recording: Path, machine: dict[str, float]) -> Measured:
    """The first windows of a recording of real speech."""
    settings = Settings(model=model, models_dir=str(ROOT / "whisper-models"), engine="ct2", device="cpu", threads=1)
    checkpoints.prepare(settings)
    dims = checkpoints.load_checkpoint(checkpoints.locate(settings)).dims
    engine = cast(CTranslate2Engine, load_ct2(settings, "cpu"))
    try:
        windows = _windows(recording)
        decoded = engine.decode(windows)
        seconds, tokens = (sum(values) / len(windows) for values in ([w.duration for w in windows], [len(d.tokens) for d in decoded]))
        lone = minimum(lambda: engine.decode(windows[:1]))
        stages = [*_before(recording, seconds), *_engine(engine, dims, windows, tokens, machine), *_after(decoded[0], recording, seconds)]
        return Measured(stages, seconds, tokens, lone, engine.describe())
    finally:
        engine.close()


def _windows(recording: Path) -> list[Window]:
    with open_recording(recording) as opened:
        packed = [window for window in pack_chunks(cut(opened.blocks(), Options())) if window][:TOGETHER]
    return [Window(window.samples, window.start, DECODING) for window in packed]


def _before(recording: Path, seconds: float) -> list[Stage]:
    """The stages before decoding, for `seconds` of audio."""
    with open_recording(recording) as opened:
        blocks = list(opened.blocks())
        share = seconds / opened.duration

    def read() -> None:
        with open_recording(recording) as opened:
            list(opened.blocks())

    return [
        Stage("audio decoded and resampled (Vorbis)", share * minimum(read)),
        Stage(
            "voices detected, windows cut", share * minimum(lambda: list(cut(blocks, Options()))), remark="left out when a request says so"
        ),
    ]


def _engine(
    engine: CTranslate2Engine, dims: ModelDimensions, windows: Sequence[Window], tokens: float, machine: dict[str, float]
) -> list[Stage]:
    """The engine's stages, per window of a batch."""
    count, model = len(windows), engine.model
    assert model is not None
    spectrogram = minimum(lambda: log_mel_arrays(windows, engine.n_mels)) / count
    encoded = minimum(lambda: engine._encode(model, windows)) / count
    features = engine._encode(model, windows)
    keys = minimum(lambda: engine._audio_keys(features.features)) / count
    unaligned = [replace(window, decoding=replace(DECODING, alignment="none")) for window in windows]
    sampled, whole = (minimum(lambda each=each: engine.decode(each)) / count for each in (unaligned, windows))  # type: ignore[misc]
    precision = engine._encoder.precision if engine._encoder else "float32"
    fast = machine.get(f"{precision}_gflops")  # in int8 only the products are: it has no one speed
    return [
        Stage("log-mel spectrogram", spectrogram),
        Stage("encoder", encoded - keys - spectrogram, encoder_flops(dims) / fast / 1e9 if fast else None),
        Stage("keys and values of cross-attention", keys),
        Stage(f"decoder, {tokens:.0f} tokens", sampled - encoded, _step_limit(dims, tokens, engine, machine)),
        Stage("alignment of the words", whole - sampled),
    ]


def encoder_flops(dims: ModelDimensions) -> float:
    """Floating-point operations of the encoder per window: convolutions, projections, attention, and MLPs of 4 times
    the width."""
    width, n = dims.n_audio_state, POSITIONS
    convolutions = 2 * 3 * (2 * n * dims.n_mels * width + n * width * width)
    layer = 2 * n * 12 * width * width + 2 * 2 * n * n * width
    return float(convolutions + dims.n_audio_layer * layer)


def _step_limit(dims: ModelDimensions, tokens: float, engine: CTranslate2Engine, machine: dict[str, float]) -> float:
    """Seconds for reading the memory that a window's tokens need: its keys and values, and its share of the int8 weights."""
    size = engine._decoder.decoder.cross_dtype.itemsize if engine._decoder else 4
    cross = dims.n_text_layer * 2 * POSITIONS * dims.n_text_state * size
    weights = dims.n_text_layer * 14 * dims.n_text_state**2 + dims.n_vocab * dims.n_text_state
    return float(tokens * (cross + weights / TOGETHER) / machine["read_gbs"] / 1e9)


class _ConstantEngine:
    """An engine that returns a fixed answer, so that a run measures everything but the engine."""

    def __init__(self, engine: Any, answer: Decoded) -> None:
        self.name, self.max_batch, self.n_mels, self.tokenizer = "ct2", 8, engine.n_mels, engine.tokenizer
        self._answer = answer

    def batch_key(self, decoding: Decoding) -> object:
        return 0  # all windows share a batch

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        return [self._answer] * len(windows)

    def close(self) -> None:
        pass


def _after(decoded: Decoded, recording: Path, seconds: float) -> list[Stage]:
    """The stages after decoding, for `seconds` of audio: the core without its engine and without reading, and the reply."""
    from whispercore.tokenizer import Tokenizer

    engine = _ConstantEngine(type("Engine", (), {"n_mels": 80, "tokenizer": Tokenizer(51_865)})(), decoded)
    without_voices = Options(vad_filter=False, language="en")

    def read() -> None:
        with open_recording(recording) as opened:
            list(cut(opened.blocks(), without_voices))

    with Transcriber(Settings(), engine=engine) as transcriber:  # type: ignore[arg-type]
        transcript: Transcript = transcriber.submit(recording, without_voices).result()
        core = minimum(lambda: transcriber.submit(recording, without_voices).result()) - minimum(read)
    share = seconds / transcript.duration
    reply = parse({RAW_FIELD: b"-"}, {"X-Whisper-Response-Format": "verbose_json"}).reply
    rendering = minimum(lambda: render(transcript, reply, "native", tokenizer=engine.tokenizer))
    return [Stage("scheduler, words to segments, text", share * max(core, 0.0)), Stage("reply made", share * rendering)]


def page(model: str, measured: Measured, machine: dict[str, float], origin: dict[str, Any]) -> str:
    """The table of stages with each one's share and limit."""
    total = sum(stage.seconds for stage in measured.stages)
    lines = [
        f"`{model}`, windows of {measured.seconds:.1f} s with {measured.tokens:.0f} tokens from a LibriSpeech chapter, "
        f"{TOGETHER} together on one core of an {cpu_model()},",
        f"which multiplies {machine['float32_gflops']:.0f} GFLOP/s in float32 and {machine['bfloat16_gflops']:.0f} in bfloat16, "
        f"and reads {machine['read_gbs']:.0f} GB/s, at `{origin['commit'][:7]}`, load average {origin['load_average'][0]:.1f}.",
        f"Encoder: {measured.engine['encoder']}; decoder: {measured.engine['decoder']}. A window by itself takes the engine "
        f"{1000 * measured.lone:.0f} ms.",
        "",
        "| a window's | processor time | share | the limit | |",
        "|---|--:|--:|--:|---|",
    ]
    for stage in measured.stages:
        limit = f"{1000 * stage.limit:.0f} ms" if stage.limit else ""
        lines.append(f"| {stage.name} | {1000 * stage.seconds:.1f} ms | {stage.seconds / total:.0%} | {limit} | {stage.remark} |")
    return "\n".join([*lines, f"| **together** | **{1000 * total:.0f} ms** | | | {measured.seconds / total:.0f} s of audio a second |", ""])


if __name__ == "__main__":
    sys.exit(main())
