"""Hugging Face transformers' Whisper, decoded by its `generate` under our rules: OpenAI's .pt and folders of Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput
from whisper.decoding import LogitFilter, SuppressBlank, SuppressTokens

from ..audio.log_mel import log_mels
from ..catalogue import installation
from ..checkpoints import Checkpoint, load_checkpoint, locate
from ..checkpoints.huggingface import config, state
from ..devices import choose_precision, decoding_threads
from ..errors import ConfigurationError, EngineError
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import TEXT_CONTEXT, Decoded, Decoding, Window
from . import Engine
from .alignment import align_by
from .noise import gumbel, seeds
from .openai import BatchedTimestampRules, description
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
    "cpu": {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32},
    "cuda": {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.bfloat16},
}
"""What is computed in; int8 is the weights' own, and they are multiplied in that."""
_MAX_BATCH = {"cpu": 8, "cuda": 32}


def load(settings: Settings, device: str) -> Engine:
    """The engine with the settings' checkpoint on `device`. Raises ConfigurationError."""
    dtype = choose_precision("hf", settings, device, precisions(device))
    if device == "cpu":
        torch.set_num_threads(decoding_threads(settings))
    checkpoint = load_checkpoint(locate(settings))
    return HuggingFaceEngine(checkpoint, device=device, dtype=dtype, max_batch=settings.batch_size or _MAX_BATCH[device])


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return tuple(_DTYPES[device])


class HuggingFaceEngine:
    """`generate` over batches of windows. Not thread-safe; one per device."""

    name = "hf"

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu", dtype: str = "float32", max_batch: int = 8) -> None:
        self.max_batch, self.n_mels = max_batch, int(checkpoint.dims.n_mels)
        self.tokenizer = Tokenizer(checkpoint.dims.n_vocab)
        self._dtype = _DTYPES[device][dtype]
        self._model_name, self._device, self._precision, self._heads = checkpoint.name, device, dtype, checkpoint.alignment_heads
        self.model: WhisperForConditionalGeneration | None = transformers_model(checkpoint, device, self._dtype)
        if dtype == "int8":
            _quantize(self.model)

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
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            raise error if isinstance(error, EngineError) else failure(error, "transformers", len(windows)) from error

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return description(self, self._model_name, self._device, self._precision)

    def free_memory(self) -> None:
        """Give the GPU memory that PyTorch caches back to the device."""
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free the weights."""
        self.model = None
        self.free_memory()

    def _decode(self, model: WhisperForConditionalGeneration, windows: Sequence[Window]) -> list[Decoded]:
        audio = model.model.encoder(log_mels(windows, self.n_mels, self._device).to(self._dtype)).last_hidden_state
        decodings = [window.decoding for window in windows]
        languages = self._languages(model, audio, decodings)
        found: dict[int, Decoded] = {}
        for group in equals([prompt_length(decoding) for decoding in decodings]):
            starts = [start_tokens(self.tokenizer, decodings[i], languages[i][0]) for i in group]
            kept = generate(model, self.tokenizer, [windows[i] for i in group], starts, audio[group])
            found |= {i: self._decoded(one, decodings[i], *languages[i]) for i, one in zip(group, kept, strict=True)}
        return self._aligned(model, audio, windows, [found[i] for i in range(len(windows))])

    def _languages(
        self, model: WhisperForConditionalGeneration, audio: torch.Tensor, decodings: Sequence[Decoding]
    ) -> list[tuple[str, float | None]]:
        """Each window's language, and how probable it is when it had to be detected: as `whisper.detect_language`."""
        openai = self.tokenizer.openai

        def detect(unknown: list[int]) -> Iterator[dict[str, float]]:
            tokens = torch.full((len(unknown), 1), openai.sot, device=audio.device)
            hidden = model.model.decoder(tokens, encoder_hidden_states=audio[unknown]).last_hidden_state
            logits = model.proj_out(hidden)[:, 0, list(openai.all_language_tokens)]
            for of_window in logits.float().softmax(dim=-1).tolist():
                yield dict(zip(openai.all_language_codes, of_window, strict=True))

        return told_or_detected(decodings, self.tokenizer.multilingual, detect)

    def _decoded(self, kept: Kept, decoding: Decoding, language: str, language_probability: float | None) -> Decoded:
        return decoded(
            self.tokenizer,
            kept.tokens,
            decoding,
            language=language,
            language_probability=language_probability,
            avg_logprob=kept.logprob / (len(kept.tokens) + 1),
            no_speech_prob=kept.no_speech_prob,
        )

    def _aligned(
        self, model: WhisperForConditionalGeneration, audio: torch.Tensor, windows: Sequence[Window], found: list[Decoded]
    ) -> list[Decoded]:
        """The same, with the times of the tokens that are asked for."""
        texts = [text_to_align(self.tokenizer, window, one) for window, one in zip(windows, found, strict=True)]
        wanted = [i for i, text in enumerate(texts) if text.tokens]
        openai = self.tokenizer.openai

        def attend(which: Sequence[int], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return _attend(model, self._heads, audio[[wanted[i] for i in which]], tokens.to(audio.device))

        times = align_by(attend, [texts[i] for i in wanted], no_timestamps=openai.no_timestamps, eot=openai.eot)
        for i, of_window in zip(wanted, times, strict=True):
            found[i] = with_times(found[i], *of_window)
        return found


@dataclass(frozen=True, slots=True)
class Kept:
    """The sequence kept of a window: its sampled tokens, the sum of their log-probabilities, the probability of silence."""

    tokens: tuple[int, ...]
    logprob: float
    no_speech_prob: float


def generate(
    model: WhisperForConditionalGeneration, tokenizer: Tokenizer, windows: Sequence[Window], starts: list[list[int]], audio: torch.Tensor
) -> list[Kept]:
    """Sample after `starts`, equally long, one for each of `audio` (windows, 1500, width), by transformers' loop and Whisper's rules.

    Whisper's own `generate` would apply its second-hand copy of these rules and its own long-form transcription: the loop below it is used.
    """
    decoding, begin, at_sot = windows[0].decoding, len(starts[0]), starts[0].index(tokenizer.openai.sot)
    samples = _samples(decoding)
    rows, audio = [start for start in starts for _ in range(samples)], audio.repeat_interleave(samples, dim=0)
    first_logits: list[torch.Tensor] = []
    hook = model.proj_out.register_forward_hook(lambda _module, _inputs, logits: None if first_logits else first_logits.append(logits))
    rules = Rules(tokenizer, decoding, begin, seeds(windows, samples, audio.device) if decoding.temperature > 0 else None)
    try:
        output = GenerationMixin.generate(
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=audio),
            attention_mask=audio.new_ones(audio.shape[:2]),  # of the encoder's output, all of which is heard; without it there is a warning
            decoder_input_ids=torch.tensor(rows, device=audio.device),
            generation_config=_generation(tokenizer, decoding, begin),
            logits_processor=LogitsProcessorList([rules]),
        )
    finally:
        hook.remove()
    silence = first_logits[0][:, at_sot].float().softmax(dim=-1)[:, tokenizer.openai.no_speech].tolist()
    sequences = [_until(row, tokenizer.eot) for row in output.sequences[:, begin:].tolist()]
    if _beams(decoding) > 1:
        # a beam's score is its sum over its length, the end of text included; an unfinished one has no end
        ends = (output.sequences[:, begin:] == tokenizer.eot).any(dim=1).tolist()
        lengths = [len(tokens) + end for tokens, end in zip(sequences, ends, strict=True)]
        sums = [score * length for score, length in zip(output.sequences_scores.tolist(), lengths, strict=True)]
    else:
        sums = rules.sums(output.sequences).tolist()
    return [
        _best(sequences[i : i + size], sums[i : i + size], silence[i], decoding)
        for size in [len(sequences) // len(starts)]
        for i in range(0, len(sequences), size)
    ]


class Rules(LogitsProcessor):  # type: ignore[misc]
    """openai-whisper's logit filters in transformers' loop, CTranslate2's penalties before them; adds up greedy and sampled tokens' scores.

    Called with the tokens so far (rows, length) and the next one's logits (rows, vocabulary), for beams their log-probabilities.
    `seeds` (rows,), above temperature 0: transformers takes the likeliest token, and noise in the logits makes that a drawn one.
    """

    def __init__(self, tokenizer: Tokenizer, decoding: Decoding, begin: int, seeds: torch.Tensor | None = None) -> None:
        self._begin, self._eot, self._decoding, self._seeds = begin, tokenizer.eot, decoding, seeds
        self._filters = _filters(tokenizer, decoding, begin)
        self._logprobs: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The logits, masked; above temperature 0 divided by it, with each row's noise."""
        scores = _penalised(input_ids[:, self._begin :], scores.float().clone(), self._decoding)
        for rule in self._filters:
            rule.apply(scores, input_ids)
        if _beams(self._decoding) == 1:
            self.sums(input_ids)
            self._logprobs = scores.log_softmax(dim=-1)
        if self._seeds is None:
            return scores
        return scores / self._decoding.temperature + gumbel(self._seeds, input_ids.shape[1] - self._begin, scores.shape[1])

    def sums(self, tokens: torch.Tensor) -> torch.Tensor:
        """(rows,): the sum of the log-probabilities of all sampled tokens, after `tokens` (rows, length) has got its last one."""
        if self._logprobs is None:
            return torch.zeros(len(tokens), device=tokens.device)
        last = self._logprobs.gather(1, tokens[:, -1:])[:, 0]
        going_on = tokens[:, -2] != self._eot  # no start holds <|endoftext|>
        total = last.where(going_on, torch.zeros_like(last))
        self._sums = total if self._sums is None else self._sums + total
        self._logprobs = None
        return self._sums


def _filters(tokenizer: Tokenizer, decoding: Decoding, begin: int) -> list[LogitFilter]:
    """In openai-whisper's order (`DecodingTask`); benchmarks, which decode a fixed number of tokens, never end."""
    openai = tokenizer.openai
    return [
        *([SuppressTokens([tokenizer.eot])] if decoding.ignore_eot else []),
        *([SuppressBlank(openai, begin)] if decoding.suppress_blank else []),
        SuppressTokens(suppressed_tokens(tokenizer, decoding.suppress_tokens)),
        *([BatchedTimestampRules(openai, begin, last_initial_timestamp(decoding))] if decoding.timestamps else []),
    ]


def _penalised(sampled: torch.Tensor, logits: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """`logits` (rows, vocabulary) after the penalties for what `sampled` (rows, length) repeats; the prompt does not count."""
    if decoding.repetition_penalty != 1.0 and sampled.shape[1]:
        said = logits.gather(1, sampled)
        penalty = decoding.repetition_penalty
        logits.scatter_(1, sampled, torch.where(said < 0, said * penalty, said / penalty))
    if decoding.no_repeat_ngram_size and sampled.shape[1]:
        logits = NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size)(sampled, logits)
    return logits


def _beams(decoding: Decoding) -> int:
    return decoding.beam_size or 1


def _samples(decoding: Decoding) -> int:
    """Sequences drawn of each window."""
    return (decoding.best_of or 1) if decoding.temperature > 0 else 1


def _generation(tokenizer: Tokenizer, decoding: Decoding, begin: int) -> GenerationConfig:
    """transformers' options. All beams are returned, finished as soon as there are enough: openai-whisper's patience of 1."""
    beams = _beams(decoding)
    search = {"num_beams": beams, "num_return_sequences": beams, "early_stopping": True, "length_penalty": 1.0, "renormalize_logits": True}
    return GenerationConfig(
        max_new_tokens=min(decoding.max_sampled, TEXT_CONTEXT + 1 - begin),
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        decoder_start_token_id=tokenizer.openai.sot,
        return_dict_in_generate=True,
        output_scores=beams > 1,
        **(search if beams > 1 else {"do_sample": False}),
    )


def _best(sequences: list[tuple[int, ...]], sums: list[float], silence: float, decoding: Decoding) -> Kept:
    best = likeliest_sequence(sums, [len(tokens) for tokens in sequences], decoding.length_penalty)
    return Kept(sequences[best], sums[best], silence)


def _until(tokens: list[int], end: int) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(end)] if end in tokens else tokens)


def _attend(
    model: WhisperForConditionalGeneration, heads: Sequence[tuple[int, int]], audio: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of `tokens` (windows, length), and the attention of `heads`: see `alignment.Attend`."""
    with _attention_shown(model):
        output = model.model.decoder(tokens, encoder_hidden_states=audio, output_attentions=True)
    # the logarithm gives back what was before the softmax, up to a constant that the softmax over the window's own sound takes away
    attention = torch.stack([output.cross_attentions[layer][:, head] for layer, head in heads], dim=1).float().log()
    return model.proj_out(output.last_hidden_state).float(), attention


@contextmanager
def _attention_shown(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Attention computed step by step: SDPA's does not give its weights away."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def transformers_model(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> WhisperForConditionalGeneration:
    """transformers' model with the checkpoint's weights; what its own files say of generation is not used."""
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**config(checkpoint.dims), attn_implementation="sdpa"))
    model.load_state_dict(state(checkpoint.state, dtype), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig()
    made: WhisperForConditionalGeneration = model.requires_grad_(False).eval().to(device)
    return made


def _quantize(model: WhisperForConditionalGeneration) -> None:
    """The linear layers' weights in 8 bits, by torchao. The output layer stays: it is the embedding as well. Raises ConfigurationError."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # here: only int8 needs torchao
    except ImportError as error:
        message = f"engine 'hf' needs torchao for int8 ({error}); {installation('hf')}; or choose another dtype"
        raise ConfigurationError(message, param="dtype") from error
    quantize_(model.model, Int8WeightOnlyConfig())
