"""Runners: our engines, openai-whisper and faster-whisper, all with the same weights, threads and decoding options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import torch

from whispercore import checkpoints
from whispercore.audio.recording import read_samples
from whispercore.catalogue import ENGINES
from whispercore.checkpoints.compute_types import precision
from whispercore.devices import choose_device
from whispercore.engines.openai import OpenAIEngine
from whispercore.errors import ConfigurationError
from whispercore.options import FALLBACK_TEMPERATURES, Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings, model_name
from whispercore.types import Transcript, Word

from .datasets import Utterance
from .work import ROOT

SEED = 0
"""Of sampling above temperature 0."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A runner's transcript of a recording.

    `words` has entries when word times were requested; `language` was given or detected.
    """

    text: str
    words: tuple[Word, ...] = ()
    language: str = ""
    segments: tuple[Utterance, ...] = ()


Transcribe = Callable[[Path, bool, str | None], Hypothesis]
"""Transcribe a file. Arguments: the path, whether to return word times, the language; None detects it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A runner, its mode, its precision, and how many recordings are open at once."""

    runner: str
    mode: str = ""
    compute_type: str = "auto"
    together: int = 1

    @classmethod
    def parse(cls, text: str) -> Row:
        """RUNNER[:MODE[:COMPUTE_TYPE]][@TOGETHER]. Raises ConfigurationError that names the known runners and modes."""
        name, _, together = text.partition("@")
        runner, mode, compute_type, *rest = [*name.split(":"), "", ""]
        if runner not in RUNNERS:
            raise ConfigurationError(f"unknown row '{text}': its runner must be one of {', '.join(RUNNERS)}", param="rows")
        modes = MODES[runner]
        if (mode and mode not in modes) or any(rest) or not (together or "1").isdigit() or together == "0":
            forms = ", ".join(f"{runner}:{mode}" for mode in modes)
            raise ConfigurationError(f"'{text}' is no row; {runner} knows {forms}, then a compute type: {forms}:float32", param="rows")
        return cls(runner, mode or modes[0], compute_type or "auto", int(together or 1))

    def __str__(self) -> str:
        together = f"@{self.together}" if self.together > 1 else ""
        return f"{self.runner}:{self.mode}:{self.compute_type}{together}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all rows have in common: checkpoint, device, threads and decoding options."""

    model: str = "nano"
    device: str = "auto"
    threads: int = 1
    beam_size: int | None = None
    condition_on_previous_text: bool = True

    @property
    def name(self) -> str:
        """The checkpoint's name without its folder."""
        return model_name(Path(self.model))

    @property
    def english_only(self) -> bool:
        """Whether the checkpoint is English-only, which OpenAI's names show by the ending .en."""
        return self.name.endswith(".en")

    @property
    def located(self) -> Settings:
        """Core settings that locate the checkpoint."""
        models, converted = str(ROOT / "whisper-models"), str(ROOT / "build" / "models")
        return Settings(model=self.model, models_dir=models, converted_dir=converted, device=self.device, threads=self.threads)

    def settings(self, engine: str, compute_type: str = "auto") -> Settings:
        """Core settings for an engine; converts the checkpoint if the engine needs it. Raises ConfigurationError."""
        settings = replace(self.located, engine=engine, dtype=compute_type)
        checkpoints.prepare(settings)
        return settings


@contextmanager
def ours(row: Row, setup: Setup) -> Iterator[Transcribe]:
    """This project's core in this process, called as the server calls it."""
    settings = setup.settings(row.runner, row.compute_type)
    options = Options(
        strategy="sequential" if row.mode == "sequential" else "chunked",
        beam_size=setup.beam_size,
        condition_on_previous_text=setup.condition_on_previous_text,
    )
    with Transcriber(settings) as transcriber:

        def transcribe(path: Path, words: bool, language: str | None) -> Hypothesis:
            transcript = transcriber.submit(path, replace(options, word_timestamps=words, language=language)).result()
            return as_hypothesis(transcript)

        yield transcribe


def as_hypothesis(transcript: Transcript) -> Hypothesis:
    """The core's transcript as a hypothesis."""
    words = tuple(word for segment in transcript.segments for word in segment.words)
    segments = tuple(Utterance(segment.start, segment.end, segment.text) for segment in transcript.segments)
    return Hypothesis(transcript.text, words, transcript.language, segments)


@contextmanager
def openai_whisper(row: Row, setup: Setup) -> Iterator[Transcribe]:
    """whisper.transcribe on samples from our reader; its own reader starts ffmpeg."""
    import whisper

    settings = setup.settings("openai")
    device = choose_device(settings)
    _check_precision(row, {"cpu": ("float32",), "cuda": ("float16", "float32")}[device])
    torch.set_num_threads(setup.threads)
    model = OpenAIEngine(checkpoints.load_checkpoint(checkpoints.locate(settings)), device=device).model

    def transcribe(path: Path, words: bool, language: str | None) -> Hypothesis:
        result = whisper.transcribe(
            model,
            read_samples(path),
            fp16=device == "cuda" and row.compute_type != "float32",
            verbose=None,
            language=language,
            beam_size=setup.beam_size,
            condition_on_previous_text=setup.condition_on_previous_text,
            word_timestamps=words,
        )
        timed = tuple(_word(**word) for segment in result["segments"] for word in segment.get("words", ()))
        segments = tuple(Utterance(float(segment["start"]), float(segment["end"]), segment["text"]) for segment in result["segments"])
        return Hypothesis(result["text"].strip(), timed, result["language"], segments)

    yield transcribe


@contextmanager
def faster_whisper(row: Row, setup: Setup) -> Iterator[Transcribe]:
    """faster-whisper on the folder that our ct2 engine reads, sequentially or by its batched pipeline, which uses
    VAD."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    settings = setup.settings("ct2", row.compute_type)
    device = choose_device(settings)
    compute_type = precision(settings, device)
    folder = checkpoints.ct2_folder(settings, checkpoints.locate(settings), compute_type)
    model = WhisperModel(str(folder), device=device, compute_type=compute_type, cpu_threads=setup.threads)
    run = BatchedInferencePipeline(model).transcribe if row.mode == "batched" else model.transcribe
    options: dict[str, Any] = {
        "beam_size": setup.beam_size or 1,
        "best_of": 1,  # the default of openai-whisper and ours; faster-whisper's is 5
        "temperature": list(FALLBACK_TEMPERATURES),
        "condition_on_previous_text": setup.condition_on_previous_text,
    }

    def transcribe(path: Path, words: bool, language: str | None) -> Hypothesis:
        generator, info = run(str(path), word_timestamps=words, language=language, **options)
        decoded = list(generator)
        timed = tuple(_word(word.word, word.start, word.end, word.probability) for segment in decoded for word in segment.words or ())
        segments = tuple(Utterance(float(segment.start), float(segment.end), segment.text) for segment in decoded)
        return Hypothesis("".join(segment.text for segment in decoded).strip(), timed, info.language, segments)

    yield transcribe


def _word(word: str, start: float, end: float, probability: float) -> Word:
    """A word of NumPy numbers, which both peers return."""
    return Word(word, float(start), float(end), float(probability))


def _check_precision(row: Row, precisions: tuple[str, ...]) -> None:
    if row.compute_type not in ("auto", *precisions):
        raise ConfigurationError(f"{row.runner} computes in {', '.join(precisions)} here; not in {row.compute_type}", param="rows")


RUNNERS: dict[str, Callable[[Row, Setup], AbstractContextManager[Transcribe]]] = {
    **dict.fromkeys(ENGINES, ours),
    "openai-whisper": openai_whisper,
    "faster-whisper": faster_whisper,
}
MODES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ENGINES, ("chunked", "sequential")),
    "openai-whisper": ("sequential",),
    "faster-whisper": ("sequential", "batched"),
}
"""Each runner's modes, its default first."""


def open_runner(row: Row, setup: Setup) -> AbstractContextManager[Transcribe]:
    """Load the row's runner and seed its random numbers.

    Raises ConfigurationError for a row that the runner does not support.
    """
    if row.together > 1 and RUNNERS[row.runner] is not ours:
        raise ConfigurationError(f"{row.runner} transcribes one recording at a time; not {row.together}", param="rows")
    torch.manual_seed(SEED)
    ctranslate2.set_random_seed(SEED)
    return RUNNERS[row.runner](row, setup)
