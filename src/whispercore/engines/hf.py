"""Hugging Face transformers' Whisper, decoded by its `generate` under openai-whisper's rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

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
from ..devices import choose_precision
from ..errors import ConfigurationError
from ..settings import Settings
from ..tokenizer import Tokenizer
from ..types import TEXT_CONTEXT, Decoding, Window
from . import Engine
from .alignment import align_by
from .batched import BatchedEngine, SampledSequence, TokenTimes, best_sequence, pytorch_description
from .noise import gumbel, seeds
from .rules import AlignmentText, last_initial_timestamp, suppressed_tokens
from .whisper_task import BatchedTimestampRules

_DTYPES = {
    "cpu": {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32},
    "cuda": {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.bfloat16},
}
"""The dtype of activations. int8 is the dtype of the weights, which torchao multiplies in the other."""
_MAX_BATCH = {"cpu": 8, "cuda": 32}


def load(settings: Settings, device: str) -> Engine:
    """The engine with the settings' checkpoint on `device`. Raises ConfigurationError."""
    dtype = choose_precision("hf", settings, device, precisions(device))
    checkpoint = load_checkpoint(locate(settings))
    return HuggingFaceEngine(checkpoint, device=device, dtype=dtype, max_batch=settings.batch_size or _MAX_BATCH[device])


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in on `device`, the first for auto."""
    return tuple(_DTYPES[device])


class HuggingFaceEngine(BatchedEngine[WhisperForConditionalGeneration, torch.Tensor]):
    """transformers' `generate` over batches of windows."""

    name = "hf"
    runtime = "transformers"
    errors = (*BatchedEngine.errors, IndexError)

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu", dtype: str = "float32", max_batch: int = 8) -> None:
        self._device, self._dtype, self._heads = device, _DTYPES[device][dtype], checkpoint.alignment_heads
        model = transformers_model(checkpoint, device, self._dtype)
        if dtype == "int8":
            _quantize(model)
        super().__init__(
            model,
            Tokenizer(checkpoint.dims.n_vocab),
            n_mels=int(checkpoint.dims.n_mels),
            max_batch=max_batch,
            description=pytorch_description(checkpoint.name, device, dtype),
        )

    def _encode(self, model: WhisperForConditionalGeneration, windows: Sequence[Window]) -> torch.Tensor:
        features: torch.Tensor = model.model.encoder(log_mels(windows, self.n_mels, self._device).to(self._dtype)).last_hidden_state
        return features

    def _detect_languages(
        self, model: WhisperForConditionalGeneration, features: torch.Tensor, indices: list[int]
    ) -> Iterator[Mapping[str, float]]:
        """As `whisper.detect_language`."""
        openai = self.tokenizer.openai
        tokens = torch.full((len(indices), 1), openai.sot, device=features.device)
        hidden = model.model.decoder(tokens, encoder_hidden_states=features[indices]).last_hidden_state
        logits = model.proj_out(hidden)[:, 0, list(openai.all_language_tokens)]
        for probabilities in logits.float().softmax(dim=-1).tolist():
            yield dict(zip(openai.all_language_codes, probabilities, strict=True))

    def _sample(
        self,
        model: WhisperForConditionalGeneration,
        features: torch.Tensor,
        indices: list[int],
        windows: Sequence[Window],
        starts: list[list[int]],
    ) -> list[SampledSequence]:
        return generate(model, self.tokenizer, windows, starts, features[indices])

    def _align(
        self, model: WhisperForConditionalGeneration, features: torch.Tensor, indices: list[int], texts: Sequence[AlignmentText]
    ) -> list[TokenTimes]:
        def attend(texts: Sequence[int], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return _attend(model, self._heads, features[[indices[i] for i in texts]], tokens.to(features.device))

        return align_by(attend, texts, self.tokenizer)


def generate(
    model: WhisperForConditionalGeneration, tokenizer: Tokenizer, windows: Sequence[Window], starts: list[list[int]], audio: torch.Tensor
) -> list[SampledSequence]:
    """Sample after `starts`, equally long, one for each of `audio` (windows, 1500, width), by transformers' loop and Whisper's rules.

    It calls the general `generate`: Whisper's own adds its own form of these rules, and a long-form transcription.
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
            attention_mask=audio.new_ones(audio.shape[:2]),  # without a mask transformers warns
            decoder_input_ids=torch.tensor(rows, device=audio.device),
            generation_config=_generation(tokenizer, decoding, begin),
            logits_processor=LogitsProcessorList([rules]),
        )
    finally:
        hook.remove()
    no_speech = first_logits[0][:, at_sot].float().softmax(dim=-1)[:, tokenizer.openai.no_speech].tolist()
    sequences = [_until(row, tokenizer.eot) for row in output.sequences[:, begin:].tolist()]
    if _beams(decoding) > 1:
        # a beam's score is its sum over its length, which counts <|endoftext|> where the beam has ended
        ends = (output.sequences[:, begin:] == tokenizer.eot).any(dim=1).tolist()
        lengths = [len(tokens) + end for tokens, end in zip(sequences, ends, strict=True)]
        sums = [score * length for score, length in zip(output.sequences_scores.tolist(), lengths, strict=True)]
    else:
        sums = rules.sums(output.sequences).tolist()
    return [
        best_sequence(sequences[i : i + size], sums[i : i + size], no_speech[i], decoding.length_penalty)
        for size in [len(sequences) // len(starts)]
        for i in range(0, len(sequences), size)
    ]


class Rules(LogitsProcessor):  # type: ignore[misc]
    """openai-whisper's logit filters in transformers' loop, after CTranslate2's penalties. Without beams it also adds up the scores.

    transformers calls it with the tokens so far (rows, length) and the next one's logits (rows, vocabulary), for beams with their
    log-probabilities. `seeds` (rows,): of the noise above temperature 0. transformers takes the likeliest token; with noise added to
    the logits that is a sampled one.
    """

    def __init__(self, tokenizer: Tokenizer, decoding: Decoding, begin: int, seeds: torch.Tensor | None = None) -> None:
        self._begin, self._eot, self._decoding, self._seeds = begin, tokenizer.eot, decoding, seeds
        self._filters = _filters(tokenizer, decoding, begin)
        self._logprobs: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The masked logits; above temperature 0 divided by the temperature, with each row's noise added."""
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
        """The sums of the log-probabilities of all sampled tokens, (rows,), up to the last of `tokens` (rows, length)."""
        if self._logprobs is None:
            return torch.zeros(len(tokens), device=tokens.device)
        last = self._logprobs.gather(1, tokens[:, -1:])[:, 0]
        unfinished = tokens[:, -2] != self._eot  # start sequences hold no <|endoftext|>
        total = last.where(unfinished, torch.zeros_like(last))
        self._sums = total if self._sums is None else self._sums + total
        self._logprobs = None
        return self._sums


def _filters(tokenizer: Tokenizer, decoding: Decoding, begin: int) -> list[LogitFilter]:
    """The filters of openai-whisper's `DecodingTask`, in its order. Benchmarks set `ignore_eot` to suppress <|endoftext|>."""
    openai = tokenizer.openai
    return [
        *([SuppressTokens([tokenizer.eot])] if decoding.ignore_eot else []),
        *([SuppressBlank(openai, begin)] if decoding.suppress_blank else []),
        SuppressTokens(suppressed_tokens(tokenizer, decoding.suppress_tokens)),
        *([BatchedTimestampRules(openai, begin, last_initial_timestamp(decoding))] if decoding.timestamps else []),
    ]


def _penalised(sampled: torch.Tensor, logits: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """`logits` (rows, vocabulary) with the penalties for tokens in `sampled` (rows, length), in which the prompt is left out."""
    if decoding.repetition_penalty != 1.0 and sampled.shape[1]:
        repeated = logits.gather(1, sampled)
        penalty = decoding.repetition_penalty
        logits.scatter_(1, sampled, torch.where(repeated < 0, repeated * penalty, repeated / penalty))
    if decoding.no_repeat_ngram_size and sampled.shape[1]:
        logits = NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size)(sampled, logits)
    return logits


def _beams(decoding: Decoding) -> int:
    return decoding.beam_size or 1


def _samples(decoding: Decoding) -> int:
    """Sequences sampled for each window."""
    return (decoding.best_of or 1) if decoding.temperature > 0 else 1


def _generation(tokenizer: Tokenizer, decoding: Decoding, begin: int) -> GenerationConfig:
    """transformers' options. All beams are returned; the search stops at `beams` finished ones, as openai-whisper with a patience of 1."""
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


def _until(tokens: list[int], end: int) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(end)] if end in tokens else tokens)


def _attend(
    model: WhisperForConditionalGeneration, heads: Sequence[tuple[int, int]], audio: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of `tokens` (windows, length), and the attention of `heads`: see `alignment.Attend`."""
    with _eager_attention(model):
        output = model.model.decoder(tokens, encoder_hidden_states=audio, output_attentions=True)
    # the logarithm undoes the softmax up to a constant, which cancels in the softmax over the window's own audio
    attention = torch.stack([output.cross_attentions[layer][:, head] for layer, head in heads], dim=1).float().log()
    return model.proj_out(output.last_hidden_state).float(), attention


@contextmanager
def _eager_attention(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Attention that returns its weights; SDPA does not."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def transformers_model(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> WhisperForConditionalGeneration:
    """transformers' model with the checkpoint's weights, without a generation config of its own."""
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**config(checkpoint.dims), attn_implementation="sdpa"))
    model.load_state_dict(state(checkpoint.state, dtype), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig()
    on_device: WhisperForConditionalGeneration = model.requires_grad_(False).eval().to(device)
    return on_device


def _quantize(model: WhisperForConditionalGeneration) -> None:
    """Put the linear layers' weights into 8 bits, by torchao, but for the output layer, which is also the embedding.

    Raises ConfigurationError when torchao is missing.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # here: only int8 needs torchao
    except ImportError as error:
        message = f"engine 'hf' needs torchao for int8 ({error}); {installation('hf')}; or choose another dtype"
        raise ConfigurationError(message, param="dtype") from error
    quantize_(model.model, Int8WeightOnlyConfig())
