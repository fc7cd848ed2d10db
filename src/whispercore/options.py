"""The options of a request: `Options` for the transcription, `Reply` for the form of the answer.

Both are validated on creation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, get_args

from .errors import InvalidRequest
from .types import Alignment, Decoding, Task

FALLBACK_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MAX_ITEMS = 16
"""The most values of a list option. Clips and suppressed tokens may have more: `MAX_LONG_ITEMS`."""
MAX_LONG_ITEMS = 1000

Strategy = Literal["chunked", "sequential"]
Channels = Literal["mono", "separate"]
ResponseFormat = Literal["json", "text", "srt", "vtt", "tsv", "verbose_json"]
Granularity = Literal["word", "segment"]


def _option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    max_items: int = MAX_ITEMS,
) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices, "minimum": minimum, "maximum": maximum, "max_items": max_items})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one transcription, named as in openai-whisper and faster-whisper. Raises InvalidRequest."""

    task: Task = _option("transcribe", "transcribe, or translate into English", choices=("transcribe", "translate"))  # noqa: RUF009
    strategy: Strategy = _option(  # noqa: RUF009
        "chunked",
        "chunked: cut at silences and decode all windows in parallel; sequential: openai-whisper's own, one window after the other",
        choices=("chunked", "sequential"),
    )
    language: str | None = _option(None, "the language: an ISO code, a tag such as pt-BR, or a name; none: detect it once per file")
    languages: tuple[str, ...] = _option((), "the candidates of the language detection")
    multilingual: bool = _option(False, "detect the language of each window, and return it with each segment")
    initial_prompt: str | None = _option(None, "text before the recording, as a prompt: names, style")
    carry_initial_prompt: bool = _option(False, "sequential: put initial_prompt before every window; chunked always does")
    condition_on_previous_text: bool = _option(True, "sequential: put the text of the previous windows into the prompt")
    hotwords: str | None = _option(None, "words to expect: names, terms")
    temperature: tuple[float, ...] = _option(
        FALLBACK_TEMPERATURES,
        "sampling temperatures; if a window fails the thresholds, it is decoded at the next one",
        minimum=0.0,
        maximum=1.0,
    )
    beam_size: int | None = _option(None, "beams at temperature 0; none: greedy decoding", minimum=1, maximum=16)
    best_of: int | None = _option(None, "candidates sampled at temperatures above 0; the best one is kept", minimum=1, maximum=16)
    patience: float | None = _option(None, "the patience of beam search; only with beam_size", minimum=0.1, maximum=10.0)
    length_penalty: float | None = _option(
        None, "the length penalty that ranks candidates; none: divide by the length", minimum=0.0, maximum=1.0
    )
    repetition_penalty: float = _option(1.0, "above 1: makes tokens that occurred before less likely", minimum=0.1, maximum=10.0)
    no_repeat_ngram_size: int = _option(0, "a sequence of this many tokens never occurs twice in a window; 0: off", minimum=0, maximum=100)
    suppress_tokens: tuple[int, ...] = _option(
        (-1,),
        "tokens never sampled; -1: symbols that are not speech, such as brackets and notes",
        minimum=-1,
        maximum=51_865,
        max_items=MAX_LONG_ITEMS,
    )
    suppress_blank: bool = _option(True, "a window's text never starts with a blank and is never empty")
    max_initial_timestamp: float = _option(1.0, "sequential: the latest first timestamp of a window, in seconds", minimum=0.0, maximum=30.0)
    max_new_tokens: int | None = _option(None, "the most tokens sampled per window; none: 224", minimum=1, maximum=224)
    without_timestamps: bool = _option(False, "decode without timestamps: one segment per window")
    compression_ratio_threshold: float | None = _option(
        2.4, "a window above it is a loop and is decoded again at the next temperature", minimum=0.0
    )
    logprob_threshold: float | None = _option(
        -1.0, "a window below it is improbable and is decoded again at the next temperature", maximum=0.0
    )
    no_speech_threshold: float | None = _option(0.6, "a window above it and below logprob_threshold is silence", minimum=0.0, maximum=1.0)
    word_timestamps: bool = _option(False, "return the times of words, by the decoder's cross-attention")
    token_logprobs: bool = _option(False, "return the log-probability of every token; OpenAI's include[]=logprobs")
    prepend_punctuations: str = _option("\"'“¿([{-", "with word_timestamps: punctuation that belongs to the next word")
    append_punctuations: str = _option("\"'.。,，!！?？:：”)]}、", "with word_timestamps: punctuation that belongs to the previous word")
    hallucination_silence_threshold: float | None = _option(
        None, "drop improbable words between silences longer than this, in seconds; switches word_timestamps on", minimum=0.0
    )
    clip_timestamps: tuple[float, ...] = _option(
        (),
        "transcribe only these clips: start,end,start,end,… in seconds; the last end may be left out",
        minimum=0.0,
        maximum=1e9,  # thirty years; without a limit its number of samples may overflow
        max_items=MAX_LONG_ITEMS,
    )
    channels: Channels = _option(  # noqa: RUF009
        "mono", "mono: mix the channels; separate: transcribe each channel, and merge the segments by time", choices=("mono", "separate")
    )
    audio_track: str | None = _option(None, "the audio track to read, by number, from 0, or language; none: the file's main track")
    vad_filter: bool | None = _option(None, "leave out audio without speech; none: chunked does, sequential does not")
    vad_threshold: float = _option(0.5, "the speech probability at which speech starts", minimum=0.0, maximum=1.0)
    vad_neg_threshold: float | None = _option(
        None, "the speech probability below which speech ends; none: vad_threshold - 0.15", minimum=0.0, maximum=1.0
    )
    vad_min_speech_duration_ms: int = _option(64, "shorter speech is a click and left out", minimum=0, maximum=30_000)
    vad_min_silence_duration_ms: int = _option(
        2000, "longer silence is left out, in recordings longer than 30 s", minimum=0, maximum=3_600_000
    )
    vad_speech_pad_ms: int | None = _option(
        None, "audio kept around speech; none: 400, or 1000 if the whole recording fits into one window", minimum=0, maximum=30_000
    )

    def __post_init__(self) -> None:
        _check_ranges(self)
        if not self.temperature:
            raise InvalidRequest("temperature takes at least one value", param="temperature")
        if any(late < early for early, late in zip(self.clip_timestamps, self.clip_timestamps[1:], strict=False)):
            raise InvalidRequest("clip_timestamps must rise: start,end,start,end,… in seconds", param="clip_timestamps")
        if self.patience is not None and self.beam_size is not None and self.beam_size * self.patience < 1:
            raise InvalidRequest(
                "patience times beam_size must be at least 1: beam search ends with this many finished beams", param="patience"
            )
        if self.multilingual and self.language is not None:
            raise InvalidRequest("multilingual detects the language of every window: leave language out", param="multilingual")
        if self.language is not None and self.languages and self.language not in self.languages:
            raise InvalidRequest(f"languages must include the given language, '{self.language}'", param="languages")
        if self.hallucination_silence_threshold is not None:  # the rule needs word times
            object.__setattr__(self, "word_timestamps", True)

    @property
    def vad(self) -> bool:
        """Whether audio without speech is left out."""
        return self.strategy == "chunked" if self.vad_filter is None else self.vad_filter

    def decoding(self, *, temperature: float, prompt: tuple[int, ...] = (), language: str | None = None) -> Decoding:
        """A window's decoding at `temperature`: beam search or greedy at 0, sampling above, as in openai-whisper."""
        greedy = temperature == 0.0
        return Decoding(
            task=self.task,
            language=language or self.language,
            languages=self.languages,
            temperature=temperature,
            beam_size=self.beam_size if greedy else None,
            best_of=None if greedy else self.best_of,
            patience=self.patience if greedy and self.beam_size else None,
            length_penalty=self.length_penalty,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            suppress_tokens=self.suppress_tokens,
            suppress_blank=self.suppress_blank,
            max_initial_timestamp=self.max_initial_timestamp,
            timestamps=not self.without_timestamps,
            prompt=prompt,
            max_tokens=self.max_new_tokens,
            alignment=self._alignment,
        )

    def at_temperature(self, temperature: float, decoding: Decoding, language: str | None) -> Decoding:
        """The same decoding at another temperature, and in `language` if it has been detected."""
        changed = self.decoding(temperature=temperature, prompt=decoding.prompt, language=language)
        return replace(changed, timestamps=decoding.timestamps, alignment=decoding.alignment)

    @property
    def _alignment(self) -> Alignment:
        if not (self.word_timestamps or self.token_logprobs):
            return "none"
        return "complete" if self.strategy == "sequential" else "all"


class OptionKeywords(TypedDict, total=False):
    """`Options` as keyword arguments, for type checkers and completion; a list may be a single value."""

    task: Task
    strategy: Strategy
    language: str | None
    languages: str | Sequence[str]
    multilingual: bool
    initial_prompt: str | None
    carry_initial_prompt: bool
    condition_on_previous_text: bool
    hotwords: str | None
    temperature: float | Sequence[float]
    beam_size: int | None
    best_of: int | None
    patience: float | None
    length_penalty: float | None
    repetition_penalty: float
    no_repeat_ngram_size: int
    suppress_tokens: int | Sequence[int]
    suppress_blank: bool
    max_initial_timestamp: float
    max_new_tokens: int | None
    without_timestamps: bool
    compression_ratio_threshold: float | None
    logprob_threshold: float | None
    no_speech_threshold: float | None
    word_timestamps: bool
    token_logprobs: bool
    prepend_punctuations: str
    append_punctuations: str
    hallucination_silence_threshold: float | None
    clip_timestamps: float | Sequence[float]
    channels: Channels
    audio_track: str | None
    vad_filter: bool | None
    vad_threshold: float
    vad_neg_threshold: float | None
    vad_min_speech_duration_ms: int
    vad_min_silence_duration_ms: int
    vad_speech_pad_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The form of the answer; subtitle options as on openai-whisper's command line. Raises InvalidRequest."""

    response_format: ResponseFormat = _option(  # noqa: RUF009
        "json", "the format of the reply; tsv is an extension of OpenAI's API", choices=get_args(ResponseFormat)
    )
    timestamp_granularities: tuple[Granularity, ...] = _option(
        ("segment",), "the times in verbose_json; word switches word_timestamps on", choices=get_args(Granularity)
    )
    include: tuple[Literal["logprobs"], ...] = _option(
        (), "logprobs: the log-probability of every token, in json only; switches token_logprobs on", choices=("logprobs",)
    )
    stream: bool = _option(False, "send segments as soon as they are final: server-sent events on OpenAI's paths, else a line of JSON each")
    max_line_width: int | None = _option(
        None, "srt, vtt: the most characters in a line; switches word_timestamps on", minimum=1, maximum=1000
    )
    max_line_count: int | None = _option(None, "srt, vtt: the most lines in a cue; needs max_line_width", minimum=1, maximum=100)
    max_words_per_line: int | None = _option(None, "srt, vtt: the most words in a line; not with max_line_width", minimum=1, maximum=1000)
    highlight_words: bool = _option(False, "srt, vtt: underline each word as it is spoken; switches word_timestamps on")

    def __post_init__(self) -> None:
        _check_ranges(self)
        for name in SUBTITLE_OPTIONS:
            if getattr(self, name) and self.response_format not in ("srt", "vtt"):
                raise InvalidRequest(f"{name} is for srt and vtt: response_format must be one of them", param=name)
        if self.max_line_count and not self.max_line_width:
            raise InvalidRequest("max_line_count needs max_line_width: how wide a line is", param="max_line_count")
        if self.max_words_per_line and self.max_line_width:
            raise InvalidRequest("max_words_per_line has no effect with max_line_width: give one of them", param="max_words_per_line")
        if self.include and self.response_format != "json":
            raise InvalidRequest("include: logprobs come with response_format json only", param="include")

    @property
    def segments(self) -> bool:
        """Whether verbose_json has segments."""
        return "segment" in self.timestamp_granularities

    @property
    def words(self) -> bool:
        """Whether verbose_json has words."""
        return "word" in self.timestamp_granularities

    @property
    def logprobs(self) -> bool:
        """Whether json has the tokens' log-probabilities."""
        return bool(self.include)

    @property
    def subtitles(self) -> dict[str, int | bool]:
        """The subtitle options that are set, by their names; each of them needs the words' times."""
        return {name: value for name in SUBTITLE_OPTIONS if (value := getattr(self, name))}


SUBTITLE_OPTIONS = ("max_line_width", "max_line_count", "max_words_per_line", "highlight_words")


def _check_ranges(options: Options | Reply) -> None:
    for item in fields(options):
        value = getattr(options, item.name)
        if isinstance(item.default, tuple) and not isinstance(value, tuple):
            raise InvalidRequest(f"{item.name} must be a tuple; got {value!s:.80}", param=item.name)
        _check_range(item.name, value, item.metadata)


def _check_range(name: str, value: Any, metadata: Any) -> None:
    """Raise InvalidRequest if a value, or an item of a tuple, is out of the option's range."""
    if isinstance(value, tuple) and len(value) > metadata["max_items"]:
        raise InvalidRequest(f"{name} takes at most {metadata['max_items']} values; got {len(value)}", param=name)
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        if metadata["choices"] and item not in metadata["choices"]:
            raise InvalidRequest(f"{name} must be one of {', '.join(metadata['choices'])}; got '{item!s:.80}'", param=name)
        low, high = metadata["minimum"], metadata["maximum"]
        if (low is not None and not item >= low) or (high is not None and not item <= high):
            raise InvalidRequest(f"{name} must be {_range(low, high)}; got {item!s:.80}", param=name)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low:.9g} and {high:.9g}"
    return f"at least {low:.9g}" if low is not None else f"at most {high:.9g}"
