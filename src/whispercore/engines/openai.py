"""openai-whisper's model and decoding, in batches: the reference for every other engine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from whisper.decoding import ApplyTimestampRules, DecodingOptions, DecodingResult, DecodingTask, GreedyDecoder, LogitFilter, SequenceRanker
from whisper.model import Whisper

from ..audio.log_mel import log_mels
from ..checkpoints import Checkpoint, empty_model, load_checkpoint, locate
from ..devices import choose_precision, decoding_threads
from ..errors import EngineError
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import Decoded, Decoding, Window
from . import Engine
from .alignment import align
from .noise import drawn, seeds
from .rules import (
    batch_key,
    decoded,
    equals,
    failure,
    last_initial_timestamp,
    likeliest_sequence,
    prompt_length,
    start_tokens,
    suppressed_tokens,
    text_to_align,
    told_or_detected,
    with_times,
)

_DTYPES = {
    "cpu": {"float32": torch.float32, "bfloat16": torch.bfloat16},
    "cuda": {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32},
}
_MAX_BATCH = {"cpu": 8, "cuda": 64}


def load(settings: Settings, device: str) -> Engine:
    """The engine with the settings' checkpoint on `device`. Raises ConfigurationError."""
    dtype = _DTYPES[device][choose_precision("openai", settings, device, precisions(device))]
    if device == "cpu":
        torch.set_num_threads(decoding_threads(settings))
    checkpoint = load_checkpoint(locate(settings))
    return OpenAIEngine(checkpoint, device=device, dtype=dtype, max_batch=settings.batch_size or _MAX_BATCH[device])


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return tuple(_DTYPES[device])


class OpenAIEngine:
    """`whisper.decoding` over batches of windows. Not thread-safe; one per device."""

    name = "openai"

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32, max_batch: int = 8) -> None:
        self.max_batch, self.n_mels = max_batch, int(checkpoint.dims.n_mels)
        self.tokenizer = Tokenizer(checkpoint.dims.n_vocab)
        self.model: Whisper | None = _model(checkpoint, device, dtype)
        self._model_name, self._device, self._dtype = checkpoint.name, device, dtype

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Languages, prompts and alignment are each window's own."""
        return batch_key(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`: encoded together, tokens sampled together where the prompts are equally long."""
        if not windows:
            return []
        if self.model is None:
            raise EngineError("the engine is closed")
        try:
            with torch.no_grad():
                return self._decode(self.model, windows)
        except (RuntimeError, ValueError, AssertionError, MemoryError) as error:
            raise error if isinstance(error, EngineError) else failure(error, "openai-whisper", len(windows)) from error

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return description(self, self._model_name, self._device, str(self._dtype).removeprefix("torch."))

    def free_memory(self) -> None:
        """Give the GPU memory that PyTorch caches back to the device."""
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free the weights."""
        self.model = None
        self.free_memory()

    def _decode(self, model: Whisper, windows: Sequence[Window]) -> list[Decoded]:
        features = model.encoder(log_mels(windows, self.n_mels, self._device).to(self._dtype))
        decodings = [window.decoding for window in windows]
        languages = self._languages(model, features, decodings)
        found: dict[int, Decoded] = {}
        for group in equals([prompt_length(decoding) for decoding in decodings]):
            starts = [start_tokens(self.tokenizer, decodings[i], languages[i][0]) for i in group]
            results = WindowsTask(model, self.tokenizer, [windows[i] for i in group], starts).run(features[group])
            found |= {i: self._decoded(result, decodings[i], *languages[i]) for i, result in zip(group, results, strict=True)}
        return self._aligned(model, features, windows, [found[i] for i in range(len(windows))])

    def _languages(self, model: Whisper, features: torch.Tensor, decodings: Sequence[Decoding]) -> list[tuple[str, float | None]]:
        """Each window's language, and how probable it is when it had to be detected."""

        def detect(unknown: list[int]) -> list[dict[str, float]]:
            probabilities: list[dict[str, float]] = model.detect_language(features[unknown], tokenizer)[1]
            return probabilities

        tokenizer = self.tokenizer.openai_for("en", "transcribe")
        return told_or_detected(decodings, self.tokenizer.multilingual, detect)

    def _decoded(self, result: DecodingResult, decoding: Decoding, language: str, language_probability: float | None) -> Decoded:
        return decoded(
            self.tokenizer,
            result.tokens,
            decoding,
            language=language,
            language_probability=language_probability,
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
        )

    def _aligned(self, model: Whisper, features: torch.Tensor, windows: Sequence[Window], found: list[Decoded]) -> list[Decoded]:
        """The same, with the times of the tokens that are asked for."""
        texts = [text_to_align(self.tokenizer, window, one) for window, one in zip(windows, found, strict=True)]
        wanted = [i for i, text in enumerate(texts) if text.tokens]
        if not wanted:
            return found
        openai = self.tokenizer.openai
        times = align(model, features[wanted], [texts[i] for i in wanted], no_timestamps=openai.no_timestamps, eot=openai.eot)
        aligned = dict(zip(wanted, times, strict=True))
        return [with_times(one, *aligned[i]) if i in aligned else one for i, one in enumerate(found)]


class WindowsTask(DecodingTask):  # type: ignore[misc]
    """openai-whisper's decoding of a batch that is encoded already, with each window's own start and its own random numbers."""

    def __init__(self, model: Whisper, tokenizer: Tokenizer, windows: Sequence[Window], starts: list[list[int]]) -> None:
        decoding = windows[0].decoding
        super().__init__(model, _options(decoding, tokenizer))
        if decoding.temperature > 0 and decoding.beam_size is None:
            self.decoder = _SeededDecoder(decoding.temperature, tokenizer.eot, seeds(windows, self.n_group), self.sample_begin)
        self._starts = starts
        self.logit_filters[:] = [_batched(rule, last_initial_timestamp(decoding)) for rule in self.logit_filters]
        self.sequence_ranker = _Ranker(decoding.length_penalty)
        if decoding.ignore_eot:
            self.logit_filters.insert(0, _SuppressEndOfText(tokenizer.eot))

    def _get_audio_features(self, features: torch.Tensor) -> torch.Tensor:
        """(windows x group, 1500, width): openai-whisper no longer repeats them, so its own beams work on one window only."""
        return features.repeat_interleave(self.n_group, dim=0)

    def _detect_language(self, audio_features: torch.Tensor, tokens: torch.Tensor) -> tuple[list[str], None]:
        """Write each window's start into `tokens` (windows, start); its language is known by now."""
        tokens.copy_(torch.tensor(self._starts))
        return ["en"] * len(self._starts), None


class _SeededDecoder(GreedyDecoder):  # type: ignore[misc]
    """openai-whisper's sampling with random numbers that follow from each row's seed, not from PyTorch's global generator."""

    def __init__(self, temperature: float, eot: int, seeds: torch.Tensor, sample_begin: int) -> None:
        super().__init__(temperature, eot)
        self._seeds, self._sample_begin = seeds, sample_begin

    def update(self, tokens: torch.Tensor, logits: torch.Tensor, sum_logprobs: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """As openai-whisper's: the tokens (rows, length) with the next one, and whether all rows have ended; adds up `sum_logprobs`."""
        step = tokens.shape[1] - self._sample_begin
        following = drawn(logits, self.temperature, self._seeds.to(logits.device), step)
        ended = tokens[:, -1] == self.eot
        following = following.masked_fill(ended, self.eot)
        logprobs = logits.float().log_softmax(dim=-1).gather(1, following[:, None])[:, 0]
        sum_logprobs += logprobs.masked_fill(ended, 0.0)
        tokens = torch.cat([tokens, following[:, None]], dim=-1)
        return tokens, bool((following == self.eot).all())


class _Ranker(SequenceRanker):  # type: ignore[misc]
    """openai-whisper's ranking, for empty sequences too."""

    def __init__(self, length_penalty: float | None) -> None:
        self._length_penalty = length_penalty

    def rank(self, tokens: list[list[torch.Tensor]], sum_logprobs: list[list[float]]) -> list[int]:
        """Of each window, the index of the sequence to keep."""
        lengths = [[len(sequence) for sequence in of_window] for of_window in tokens]
        return [likeliest_sequence(*pair, self._length_penalty) for pair in zip(sum_logprobs, lengths, strict=True)]


class BatchedTimestampRules(ApplyTimestampRules):  # type: ignore[misc]
    """openai-whisper's rules for timestamps, for all sequences at once: its own loop waits for the GPU several times a sequence."""

    def apply(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        """Mask `logits` (sequences, vocabulary) in place for the next token after `tokens` (sequences, length)."""
        begin = self.tokenizer.timestamp_begin
        logits[:, self.tokenizer.no_timestamps] = -torch.inf
        if tokens.shape[1] == self.sample_begin:
            logits[:, :begin] = -torch.inf
            if self.max_initial_timestamp_index is not None:
                logits[:, begin + self.max_initial_timestamp_index + 1 :] = -torch.inf
        else:
            self._keep_pairs_and_order(logits, tokens[:, self.sample_begin :])
        logprobs = logits.float().log_softmax(dim=-1)
        likelier = logprobs[:, begin:].logsumexp(dim=-1) > logprobs[:, :begin].amax(dim=-1)
        logits[:, :begin].masked_fill_(likelier[:, None], -torch.inf)

    def _keep_pairs_and_order(self, logits: torch.Tensor, sampled: torch.Tensor) -> None:
        """Timestamps come in pairs, except before the end, and never decrease; a segment is never empty."""
        begin = self.tokenizer.timestamp_begin
        is_time = sampled >= begin
        last = is_time[:, -1]
        before = is_time[:, -2] if sampled.shape[1] > 1 else torch.ones_like(last)
        opened = last & ~before
        latest = sampled.masked_fill(~is_time, begin - 1).amax(dim=1)
        first_allowed = torch.where(opened, latest, latest + 1)
        too_early = torch.arange(begin, logits.shape[1], device=logits.device) < first_allowed[:, None]
        logits[:, begin:].masked_fill_(too_early | (last & before)[:, None], -torch.inf)
        logits[:, : self.tokenizer.eot].masked_fill_(opened[:, None], -torch.inf)


def _batched(rule: LogitFilter, last_initial: int | None) -> LogitFilter:
    """The rule itself, or the batched form of the rules for timestamps, for which openai-whisper takes 0 s for no bound."""
    return BatchedTimestampRules(rule.tokenizer, rule.sample_begin, last_initial) if isinstance(rule, ApplyTimestampRules) else rule


class _SuppressEndOfText(LogitFilter):  # type: ignore[misc]
    """Never end: benchmarks decode a fixed number of tokens."""

    def __init__(self, eot: int) -> None:
        self._eot = eot

    def apply(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        logits[:, self._eot] = -torch.inf


def description(engine: Engine, model: str, device: str, precision: str) -> dict[str, str | int | float | bool]:
    """What an engine that runs in PyTorch says of itself; `device`: cpu, cuda or cuda:N."""
    return {
        "engine": engine.name,
        "model": model,
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "batch": engine.max_batch,
    }


def _model(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> Whisper:
    """The model with its large weights in `dtype`: as float32 they would be cast again at every step of decoding.

    Normalisation and positions stay float32, as openai-whisper computes them.
    """
    model = empty_model(checkpoint.dims)
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.state.items()}, assign=True)
    model.decoder.register_buffer("mask", torch.full((checkpoint.dims.n_text_ctx,) * 2, -torch.inf).triu_(1), persistent=False)
    heads = torch.zeros(checkpoint.dims.n_text_layer, checkpoint.dims.n_text_head, dtype=torch.bool)
    heads[tuple(zip(*checkpoint.alignment_heads, strict=True))] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Embedding):
            module.to(dtype)
    return model.requires_grad_(False).eval().to(device)


def _options(decoding: Decoding, tokenizer: Tokenizer) -> DecodingOptions:
    """openai-whisper's options of a decoding; language and prompt, which differ from window to window, are set in the task."""
    return DecodingOptions(
        task=decoding.task,
        language="en",
        temperature=decoding.temperature,
        sample_len=decoding.max_sampled,
        best_of=decoding.best_of,
        beam_size=decoding.beam_size,
        patience=decoding.patience,
        length_penalty=decoding.length_penalty,
        prompt=[0] * prompt_length(decoding),
        suppress_tokens=suppressed_tokens(tokenizer, decoding.suppress_tokens),
        suppress_blank=decoding.suppress_blank,
        without_timestamps=not decoding.timestamps,
    )
