"""Processor time of each stage of a window, and the limits by arithmetic and memory: `python -m bench.profile` writes profile.md's table.

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
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from ctranslate2 import StorageView
from whisper.model import ModelDimensions

from bench import results, speech
from bench.contenders import Setup
from bench.report.page import Block
from bench.results import RESULTS, cpu_model
from bench.work import CLIP_SECONDS, HEADERS, TOKENS, options
from whispercore import checkpoints
from whispercore.api.fields import RAW_FIELD
from whispercore.api.reply import render
from whispercore.api.request import parse
from whispercore.audio.cutting import cut
from whispercore.audio.recording import open_recording
from whispercore.audio.spectrogram import log_mel_arrays
from whispercore.engines.ct2 import CTranslate2Engine
from whispercore.engines.ct2 import load as load_ct2
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.types import Decoded, Decoding, Segment, Transcript, Window

PAGE = Path(__file__).resolve().parent / "profile.md"
BLOCK = Block("profile")
REPEAT, TOGETHER = 2, 4
"""Repetitions, and the windows in a batch of one core: half of 8 on two cores."""
POSITIONS, PROMPT = 1500, 3


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a window: processor seconds, and the minimum by arithmetic or memory where it is known."""

    name: str
    seconds: float
    limit: float | None = None
    remark: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0. Measures, saves results/profile-SIZE.json, writes the page's table."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--model", default="base", help="size, with random weights (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="decoded from every window (default: %(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    origin, machine = results.provenance(), measure_machine()
    stages = measure(Setup(size=arguments.model, device="cpu", threads=1, tokens=arguments.tokens), machine)
    settings = {"model": f"{arguments.model}, random weights", "tokens": arguments.tokens, "together": TOGETHER}
    results.save(RESULTS, f"profile-{arguments.model}", origin, settings, {"machine": machine, "stages": stages})
    text = page(arguments.model, arguments.tokens, stages, machine, origin)
    BLOCK.put(PAGE, text)
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


def measure(setup: Setup, machine: dict[str, float]) -> list[Stage]:
    """The stages of one clip, in order."""
    clip = speech.clips(1, CLIP_SECONDS, seed=1)[0]
    settings = Settings.load(environ=setup.variables | {"WHISPER_ENGINE": "ct2"})
    checkpoints.prepare(settings)
    engine = cast(CTranslate2Engine, load_ct2(settings, "cpu"))
    try:
        stages = [*_before(clip), *_engine(engine, setup, machine)]
        decoded = engine.decode(_windows(setup.tokens))[0]
    finally:
        engine.close()
    return [*stages, *_after(decoded, clip)]


def _before(clip: bytes) -> list[Stage]:
    """The stages before decoding."""

    def blocks() -> list[Any]:
        return list(open_recording(clip, max_seconds=60).blocks())

    samples = blocks()
    return [
        Stage("request read, options parsed", minimum(lambda: parse({RAW_FIELD: clip}, HEADERS))),
        Stage("audio decoded (FLAC)", minimum(blocks)),
        Stage("voices detected, window cut", minimum(lambda: list(cut(samples, Options()))), remark="left out when a request says so"),
    ]


def _windows(tokens: int) -> list[Window]:
    decoding = Decoding(language="en", max_tokens=tokens, ignore_eot=True)
    return [Window(speech.recording(CLIP_SECONDS, number), 0.0, decoding) for number in range(TOGETHER)]


def _engine(engine: CTranslate2Engine, setup: Setup, machine: dict[str, float]) -> list[Stage]:
    """Spectrogram, encoder and decoder, per window of a batch of `TOGETHER`."""
    dims = checkpoints.load_checkpoint(setup.checkpoint).dims
    batch = _windows(setup.tokens)
    mels = log_mel_arrays(batch, engine.n_mels)
    spectrogram = minimum(lambda: log_mel_arrays(batch, engine.n_mels)) / TOGETHER
    model = engine.model
    assert model is not None
    ct2_encoder = minimum(lambda: model.encode(StorageView.from_array(mels))) / TOGETHER
    fused = engine._encoder
    encoder = minimum(lambda: fused(mels)) / TOGETHER if fused else ct2_encoder
    whole = minimum(lambda: engine.decode(batch)) / TOGETHER
    single = minimum(lambda: engine.decode(batch[:1]))
    fast = machine["bfloat16_gflops" if engine._encoder else "float32_gflops"]
    lone = f"a lone window in all: {1000 * single:.0f} ms"
    return [
        Stage("log-mel spectrogram", spectrogram),
        Stage("encoder", encoder, encoder_flops(dims) / fast / 1e9, f"CTranslate2's own in int8: {1000 * ct2_encoder:.0f} ms"),
        Stage(f"decoder, {setup.tokens} tokens", whole - encoder - spectrogram, _step_limit(dims, setup.tokens, machine), lone),
    ]


def encoder_flops(dims: ModelDimensions) -> float:
    """Floating-point operations of the encoder per window: convolutions, projections, attention, and MLPs of 4 times
    the width."""
    width, n = dims.n_audio_state, POSITIONS
    convolutions = 2 * 3 * (2 * n * dims.n_mels * width + n * width * width)
    layer = 2 * n * 12 * width * width + 2 * 2 * n * n * width
    return float(convolutions + dims.n_audio_layer * layer)


def _step_limit(dims: ModelDimensions, tokens: int, machine: dict[str, float]) -> float:
    """Seconds for reading the memory that a window's tokens need: its float32 keys and values, and its share of the
    int8 weights."""
    cross = dims.n_text_layer * 2 * POSITIONS * dims.n_text_state * 4
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


def _after(decoded: Decoded, clip: bytes) -> list[Stage]:
    """The stages after decoding: the core without its engine, and rendering the reply."""
    from whispercore.tokenizer import Tokenizer

    engine = _ConstantEngine(type("Engine", (), {"n_mels": 80, "tokenizer": Tokenizer(51_865)})(), decoded)
    with Transcriber(Settings(), engine=engine) as transcriber:  # type: ignore[arg-type]
        transcript: Transcript = transcriber.submit(clip, options()).result()
        core = minimum(lambda: transcriber.submit(clip, options()).result())
    reply = parse({RAW_FIELD: b"-"}, HEADERS | {"X-Whisper-Response-Format": "verbose_json"}).reply
    rendering = minimum(lambda: render(transcript, reply, "native", tokenizer=engine.tokenizer))
    assert all(isinstance(segment, Segment) for segment in transcript.segments)
    return [
        Stage("scheduler, segments, text (audio decoded once more in it)", core),
        Stage("reply made", rendering),
    ]


def page(model: str, tokens: int, stages: Sequence[Stage], machine: dict[str, float], origin: dict[str, Any]) -> str:
    """The table of stages with each one's share and limit."""
    total = sum(stage.seconds for stage in stages)
    lines = [
        f"`{model}`, random weights, {tokens} tokens of every window, {TOGETHER} windows together on one core of an {cpu_model()}, which",
        "multiplies "
        f"{machine['float32_gflops']:.0f} GFLOP/s in float32 and {machine['bfloat16_gflops']:.0f} in bfloat16, and reads "
        f"{machine['read_gbs']:.0f} GB/s, at `{origin['commit'][:7]}`, load average {origin['load_average'][0]:.1f}.",
        "",
        "| a window's | processor time | share | the limit | |",
        "|---|--:|--:|--:|---|",
    ]
    for stage in stages:
        limit = f"{1000 * stage.limit:.0f} ms" if stage.limit else ""
        lines.append(f"| {stage.name} | {1000 * stage.seconds:.1f} ms | {stage.seconds / total:.0%} | {limit} | {stage.remark} |")
    return "\n".join([*lines, f"| **together** | **{1000 * total:.0f} ms** | | | |", ""])


if __name__ == "__main__":
    sys.exit(main())
