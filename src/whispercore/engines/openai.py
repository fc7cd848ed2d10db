"""openai-whisper's model and decoding, in batches: the reference for every other engine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from whisper.decoding import ApplyTimestampRules, DecodingOptions, DecodingTask, LogitFilter
from whisper.model import Whisper

from ..checkpoints import Checkpoint, empty_model, load_checkpoint, locate
from ..devices import decoding_threads
from ..errors import ConfigurationError, EngineError, OutOfMemory
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import Decoded, Decoding, Window
from .features import log_mels
from .rules import MAX_PROMPT, batch_key, decoded, sampled_length, start_tokens

_DTYPES = {
    "cpu": {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16},
    "cuda": {"auto": torch.float16, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16},
}
_MAX_BATCH = {"cpu": 8, "cuda": 64}


def load(settings: Settings, device: str) -> OpenAIEngine:
    """The engine with the settings' checkpoint on `device`. Raises ConfigurationError."""
    if settings.dtype not in _DTYPES[device]:
        known = ", ".join(_DTYPES[device])
        raise ConfigurationError(f"engine 'openai' on {device} computes in {known}; not in {settings.dtype}", param="dtype")
    if device == "cpu":
        torch.set_num_threads(decoding_threads(settings))
    checkpoint = load_checkpoint(locate(settings))
    return OpenAIEngine(
        checkpoint, device=device, dtype=_DTYPES[device][settings.dtype], max_batch=settings.batch_size or _MAX_BATCH[device]
    )


class OpenAIEngine:
    """`whisper.decoding` over batches of windows. Not thread-safe; one per device."""

    name = "openai"

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32, max_batch: int = 8) -> None:
        self.max_batch, self.n_mels = max_batch, int(checkpoint.dims.n_mels)
        self.tokenizer = Tokenizer(checkpoint.dims.n_vocab)
        self.model: Whisper | None = _model(checkpoint, device, dtype)
        self._model_name, self._device, self._dtype = checkpoint.name, device, dtype

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Languages and prompts may differ, the prompts' lengths may not."""
        return batch_key(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows that share a `batch_key`: one pass of the encoder, one decoding loop."""
        if not windows:
            return []
        if self.model is None:
            raise EngineError("the engine is closed")
        try:
            mel = log_mels(windows, self.n_mels, self._device)
            results = _WindowsTask(self.model, self.tokenizer, [w.decoding for w in windows], self._dtype).run(mel)
        except (RuntimeError, ValueError, AssertionError, MemoryError) as error:
            raise _ours(error, len(windows)) from error
        return [
            decoded(
                self.tokenizer,
                result.tokens,
                language=result.language,
                temperature=result.temperature,
                avg_logprob=result.avg_logprob,
                no_speech_prob=result.no_speech_prob,
            )
            for result in results
        ]

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        on_gpu = self._device == "cuda"
        return {
            "engine": self.name,
            "model": self._model_name,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "precision": str(self._dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "batch": self.max_batch,
        }

    def free_memory(self) -> None:
        """Give the GPU memory that PyTorch caches back to the device."""
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free the weights."""
        self.model = None
        self.free_memory()


class _WindowsTask(DecodingTask):  # type: ignore[misc]
    """openai-whisper's decoding of a batch, with each window's own prompt and language."""

    def __init__(self, model: Whisper, tokenizer: Tokenizer, decodings: list[Decoding], dtype: torch.dtype) -> None:
        super().__init__(model, _options(decodings[0]))
        self._windows_tokenizer, self._decodings, self._dtype = tokenizer, decodings, dtype
        self.logit_filters[:] = [_batched(rule) for rule in self.logit_filters]
        if decodings[0].ignore_eot:
            self.logit_filters.insert(0, _SuppressEndOfText(tokenizer.eot))

    def _get_audio_features(self, mel: torch.Tensor) -> torch.Tensor:
        """(windows x group, 1500, width): openai-whisper no longer repeats them, so its own beams work on one window only."""
        features: torch.Tensor = self.model.encoder(mel.to(self._dtype))
        return features.repeat_interleave(self.n_group, dim=0)

    def _detect_language(self, audio_features: torch.Tensor, tokens: torch.Tensor) -> tuple[list[str], None]:
        """Detect what is not given, and write each window's start into `tokens` (windows, start)."""
        languages = self._languages(audio_features[:: self.n_group])
        starts = [start_tokens(self._windows_tokenizer, *pair) for pair in zip(self._decodings, languages, strict=True)]
        tokens.copy_(torch.tensor(starts))
        return languages, None

    def _languages(self, features: torch.Tensor) -> list[str]:
        if not self.model.is_multilingual:
            return ["en"] * len(features)
        unknown = [i for i, decoding in enumerate(self._decodings) if decoding.language is None]
        languages = [decoding.language or "" for decoding in self._decodings]
        if unknown:
            _, probabilities = self.model.detect_language(features[unknown], self.tokenizer)
            for i, of_window in zip(unknown, probabilities, strict=True):
                languages[i] = max(of_window, key=of_window.__getitem__)
        return languages


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


def _batched(rule: LogitFilter) -> LogitFilter:
    """The rule itself, or the batched form of the rules for timestamps."""
    if not isinstance(rule, ApplyTimestampRules):
        return rule
    return BatchedTimestampRules(rule.tokenizer, rule.sample_begin, rule.max_initial_timestamp_index)


class _SuppressEndOfText(LogitFilter):  # type: ignore[misc]
    """Never end: benchmarks decode a fixed number of tokens."""

    def __init__(self, eot: int) -> None:
        self._eot = eot

    def apply(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        logits[:, self._eot] = -torch.inf


def _ours(error: Exception, count: int) -> EngineError:
    """PyTorch's error as one of ours: the CPU's allocator says what it lacks in words only."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in reason:
        return OutOfMemory(f"no memory for a batch of {count} windows: {reason}")
    return EngineError(f"openai-whisper failed on a batch of {count} windows: {reason}")


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


def _options(decoding: Decoding) -> DecodingOptions:
    """openai-whisper's options of a decoding; language and prompt, which differ from window to window, are set in the task."""
    return DecodingOptions(
        task=decoding.task,
        language="en",
        temperature=decoding.temperature,
        sample_len=sampled_length(decoding),
        best_of=decoding.best_of,
        beam_size=decoding.beam_size,
        patience=decoding.patience,
        length_penalty=decoding.length_penalty,
        prompt=[0] * min(len(decoding.prompt), MAX_PROMPT),
        without_timestamps=not decoding.timestamps,
    )
