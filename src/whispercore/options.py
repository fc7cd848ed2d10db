"""What one request may ask of the transcription: frozen, keyword-only, checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from .errors import InvalidRequest
from .types import Decoding, Task

FALLBACK_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MAX_TEMPERATURES = 16


def _option(default: Any, doc: str, *, choices: tuple[str, ...] = (), minimum: float | None = None, maximum: float | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of one transcription, named as openai-whisper and faster-whisper name them. Raises InvalidRequest."""

    task: Task = _option("transcribe", "transcribe, or translate into English", choices=("transcribe", "translate"))  # noqa: RUF009
    language: str | None = _option(None, "the speech's language, ISO code or English name; none: detected once per file")
    initial_prompt: str | None = _option(None, "text that precedes the recording: names, style")
    temperature: tuple[float, ...] = _option(
        FALLBACK_TEMPERATURES, "sampling temperatures, the next one tried when a window fails the thresholds", minimum=0.0, maximum=1.0
    )
    beam_size: int | None = _option(None, "beams at temperature 0; none: greedy", minimum=1, maximum=16)
    best_of: int | None = _option(None, "samples at temperatures above 0, the best kept", minimum=1, maximum=16)
    patience: float | None = _option(None, "beam search's patience", minimum=0.1, maximum=10.0)
    length_penalty: float | None = _option(None, "beam search's length penalty", minimum=0.0, maximum=1.0)
    compression_ratio_threshold: float | None = _option(2.4, "a window above it is a loop: try the next temperature", minimum=0.0)
    logprob_threshold: float | None = _option(-1.0, "a window below it is a guess: try the next temperature", maximum=0.0)
    no_speech_threshold: float | None = _option(0.6, "a window above it, and below logprob_threshold, is silence", minimum=0.0, maximum=1.0)
    vad_filter: bool = _option(True, "leave out stretches where nobody speaks; false: every second is decoded")
    vad_threshold: float = _option(0.5, "speech probability above which somebody speaks", minimum=0.0, maximum=1.0)

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_range(item.name, getattr(self, item.name), item.metadata)
        if not 1 <= len(self.temperature) <= MAX_TEMPERATURES:
            raise InvalidRequest(f"temperature takes 1 to {MAX_TEMPERATURES} values; got {len(self.temperature)}", param="temperature")

    def decoding(self, *, temperature: float, prompt: tuple[int, ...] = (), language: str | None = None) -> Decoding:
        """How an engine is to decode a window at `temperature`; beams at 0, samples above it, as openai-whisper does."""
        greedy = temperature == 0.0
        return Decoding(
            task=self.task,
            language=language or self.language,
            temperature=temperature,
            beam_size=self.beam_size if greedy else None,
            best_of=None if greedy else self.best_of,
            patience=self.patience if greedy else None,
            length_penalty=self.length_penalty,
            prompt=prompt,
        )


def _check_range(name: str, value: Any, metadata: Any) -> None:
    """Raise InvalidRequest when a value, or one of a tuple's, is out of the option's range."""
    for one in value if isinstance(value, tuple) else (value,):
        if one is None:
            continue
        if metadata["choices"] and one not in metadata["choices"]:
            raise InvalidRequest(f"{name} must be one of {', '.join(metadata['choices'])}; got '{one}'", param=name)
        low, high = metadata["minimum"], metadata["maximum"]
        if (low is not None and not one >= low) or (high is not None and not one <= high):
            raise InvalidRequest(f"{name} must be {_range(low, high)}; got {one}", param=name)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low:g} and {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"
