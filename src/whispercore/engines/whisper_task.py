"""openai-whisper's `DecodingTask` over a batch of windows that are encoded already, and its timestamp rules for all rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from whisper.decoding import ApplyTimestampRules, DecodingOptions, DecodingTask, GreedyDecoder, LogitFilter, SequenceRanker
from whisper.model import Whisper

from ..tokenizer import Tokenizer
from ..types import Decoding, Window
from .noise import drawn, seeds
from .rules import last_initial_timestamp, likeliest_sequence, prompt_length, suppressed_tokens


class WindowsTask(DecodingTask):  # type: ignore[misc]
    """The decoding of a batch in which each window has its own start sequence and its own random numbers. `run` takes features."""

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
        """(windows x group, 1500, width). openai-whisper no longer repeats features, so its own beams work on one window only."""
        return features.repeat_interleave(self.n_group, dim=0)

    def _detect_language(self, audio_features: torch.Tensor, tokens: torch.Tensor) -> tuple[list[str], None]:
        """Write each window's start sequence, which names its language, into `tokens` (windows, start)."""
        tokens.copy_(torch.tensor(self._starts))
        return ["en"] * len(self._starts), None


class _SeededDecoder(GreedyDecoder):  # type: ignore[misc]
    """openai-whisper's sampling with random numbers that follow from each row's seed instead of PyTorch's global generator."""

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
        """The index of the best sequence of each window."""
        lengths = [[len(sequence) for sequence in sequences] for sequences in tokens]
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
    """The rule, or the batched form of the timestamp rules. openai-whisper takes a bound of 0 s for no bound; this form does not."""
    return BatchedTimestampRules(rule.tokenizer, rule.sample_begin, last_initial) if isinstance(rule, ApplyTimestampRules) else rule


class _SuppressEndOfText(LogitFilter):  # type: ignore[misc]
    """Never end: benchmarks decode a fixed number of tokens."""

    def __init__(self, eot: int) -> None:
        self._eot = eot

    def apply(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        logits[:, self._eot] = -torch.inf


def _options(decoding: Decoding, tokenizer: Tokenizer) -> DecodingOptions:
    """openai-whisper's options. Language and prompt differ between windows; the task sets them."""
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
