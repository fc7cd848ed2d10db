"""One runner for each way to transcribe: our engines, openai-whisper, faster-whisper; the same weights, threads and decoding for all."""

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
from whispercore.checkpoints.conversion import precision
from whispercore.devices import choose_device
from whispercore.errors import ConfigurationError
from whispercore.options import FALLBACK_TEMPERATURES, Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings, model_name
from whispercore.types import Word

from .datasets import Utterance
from .work import ROOT

SEED = 0
"""Of what is sampled above temperature 0."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a runner made of a recording: `words` when it was asked for their times, `language` as told or detected."""

    text: str
    words: tuple[Word, ...] = ()
    language: str = ""
    segments: tuple[Utterance, ...] = ()


Hear = Callable[[Path, bool, str | None], Heard]
"""Transcribe a file, with the times of its words or without, in a language or, None, in the one that is detected."""


@dataclass(frozen=True, slots=True)
class Row:
    """A runner, how it walks through a recording, its precision, and how many recordings are open at once."""

    runner: str
    mode: str = ""
    compute_type: str = "auto"
    together: int = 1

    @classmethod
    def parse(cls, text: str) -> Row:
        """RUNNER[:MODE[:COMPUTE_TYPE]][@TOGETHER]. Raises ConfigurationError with what is known."""
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
    """What is the same for every row: the checkpoint, where it runs, and how it decodes."""

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
        """Whether the checkpoint knows no other language, by its name: OpenAI's end in .en."""
        return self.name.endswith(".en")

    @property
    def located(self) -> Settings:
        """Our own settings of it, enough to find the checkpoint."""
        models, converted = str(ROOT / "whisper-models"), str(ROOT / "build" / "models")
        return Settings(model=self.model, models_dir=models, converted_dir=converted, device=self.device, threads=self.threads)

    def settings(self, engine: str, compute_type: str = "auto") -> Settings:
        """The same for an engine, the checkpoint made ready for it. Raises ConfigurationError."""
        settings = replace(self.located, engine=engine, dtype=compute_type)
        checkpoints.prepare(settings)
        return settings


@contextmanager
def ours(row: Row, setup: Setup) -> Iterator[Hear]:
    """This project's core in process, as the server calls it."""
    settings = setup.settings(row.runner, row.compute_type)
    asked = Options(
        strategy="sequential" if row.mode == "sequential" else "chunked",
        beam_size=setup.beam_size,
        condition_on_previous_text=setup.condition_on_previous_text,
    )
    with Transcriber(settings) as transcriber:

        def hear(path: Path, words: bool, language: str | None) -> Heard:
            found = transcriber.submit(path, replace(asked, word_timestamps=words, language=language)).result()
            timed = tuple(word for segment in found.segments for word in segment.words)
            spans = tuple(Utterance(segment.start, segment.end, segment.text) for segment in found.segments)
            return Heard(found.text, timed, found.language, spans)

        yield hear


@contextmanager
def openai_whisper(row: Row, setup: Setup) -> Iterator[Hear]:
    """whisper.transcribe. It gets samples from our reader: its own starts ffmpeg."""
    import whisper

    settings = setup.settings("openai")
    device = choose_device(settings)
    _only_one_of(row, {"cpu": ("float32",), "cuda": ("float16", "float32")}[device])
    torch.set_num_threads(setup.threads)
    model = openai_model(checkpoints.load_checkpoint(checkpoints.locate(settings))).to(device)

    def hear(path: Path, words: bool, language: str | None) -> Heard:
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
        found = [word for segment in result["segments"] for word in segment.get("words", ())]
        spans = tuple(Utterance(float(one["start"]), float(one["end"]), one["text"]) for one in result["segments"])
        return Heard(result["text"].strip(), tuple(_word(**word) for word in found), result["language"], spans)

    yield hear


@contextmanager
def faster_whisper(row: Row, setup: Setup) -> Iterator[Hear]:
    """faster-whisper on the folder our ct2 engine reads: one window after the other, or its batched pipeline, which has VAD on."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    settings = setup.settings("ct2", row.compute_type)
    device = choose_device(settings)
    compute_type = precision(settings, device)
    folder = checkpoints.ct2_folder(settings, checkpoints.locate(settings), compute_type)
    model = WhisperModel(str(folder), device=device, compute_type=compute_type, cpu_threads=setup.threads)
    transcribe = BatchedInferencePipeline(model).transcribe if row.mode == "batched" else model.transcribe
    asked: dict[str, Any] = {
        "beam_size": setup.beam_size or 1,
        "best_of": 1,  # the others' default; its own is 5
        "temperature": list(FALLBACK_TEMPERATURES),
        "condition_on_previous_text": setup.condition_on_previous_text,
    }

    def hear(path: Path, words: bool, language: str | None) -> Heard:
        found, info = transcribe(str(path), word_timestamps=words, language=language, **asked)
        segments = list(found)
        timed = tuple(_word(word.word, word.start, word.end, word.probability) for segment in segments for word in segment.words or ())
        spans = tuple(Utterance(float(segment.start), float(segment.end), segment.text) for segment in segments)
        return Heard("".join(segment.text for segment in segments).strip(), timed, info.language, spans)

    yield hear


def openai_model(checkpoint: checkpoints.Checkpoint) -> Any:
    """As whisper.load_model makes it, which reads no folders of Hugging Face and knows alignment heads by OpenAI's names only."""
    from whisper.model import Whisper

    model = Whisper(checkpoint.dims)
    model.load_state_dict(checkpoint.state)
    heads = torch.zeros(checkpoint.dims.n_text_layer, checkpoint.dims.n_text_head, dtype=torch.bool)
    heads[tuple(zip(*checkpoint.alignment_heads, strict=True))] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model.eval()


def _word(word: str, start: float, end: float, probability: float) -> Word:
    """Of numpy's numbers, which both give."""
    return Word(word, float(start), float(end), float(probability))


def _only_one_of(row: Row, known: tuple[str, ...]) -> None:
    if row.compute_type not in ("auto", *known):
        raise ConfigurationError(f"{row.runner} computes in {', '.join(known)} here; not in {row.compute_type}", param="rows")


RUNNERS: dict[str, Callable[[Row, Setup], AbstractContextManager[Hear]]] = {
    **dict.fromkeys(ENGINES, ours),
    "openai-whisper": openai_whisper,
    "faster-whisper": faster_whisper,
}
MODES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ENGINES, ("chunked", "sequential")),
    "openai-whisper": ("sequential",),
    "faster-whisper": ("sequential", "batched"),
}
"""How each runner can walk through a recording, its default first."""


def open_runner(row: Row, setup: Setup) -> AbstractContextManager[Hear]:
    """The row's runner, loaded, its random numbers begun afresh. Raises ConfigurationError for what it cannot do."""
    if row.together > 1 and RUNNERS[row.runner] is not ours:
        raise ConfigurationError(f"{row.runner} transcribes one recording at a time; not {row.together}", param="rows")
    torch.manual_seed(SEED)
    ctranslate2.set_random_seed(SEED)
    return RUNNERS[row.runner](row, setup)
