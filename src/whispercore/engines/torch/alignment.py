"""Token times from the alignment heads' attention, in one more pass over the text (openai-whisper's timing.py), without host waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tokenizer import Tokenizer
from ..alignment import FRAMES_PER_TOKEN, jumps, running_median
from ..pytorch.cache import Cache
from ..pytorch.model import Model
from ..rules import AlignmentText
from .device import Device, Snapshot, slot_index


@dataclass(frozen=True, slots=True)
class Alignment:
    """A text of n tokens as the device aligned it: `attention` (n + 1, steps of the encoder's output), `probs` (n,)."""

    attention: Tensor
    probs: Tensor

    def times(self) -> tuple[list[int], list[float]]:
        """The steps at which the tokens begin, and the last one ends, n + 1; the tokens' probabilities, n."""
        (steps,) = jumps([-self.attention.double().numpy()])
        return steps.tolist(), self.probs.tolist()


@dataclass(frozen=True, slots=True)
class PendingAlignment:
    """An alignment whose results are on their way to the host."""

    snapshot: Snapshot

    def wait(self) -> list[Alignment]:
        """One for each text."""
        tensors = self.snapshot.wait()
        return [Alignment(attention, probs) for attention, probs in zip(tensors[::2], tensors[1::2], strict=True)]


def align(
    model: Model, cache: Cache, device: Device, slots: Sequence[int], texts: Sequence[AlignmentText], tokenizer: Tokenizer
) -> PendingAlignment:
    """Align each text, none of them empty, with the audio whose keys are still in its slot: one pass for all."""
    no_timestamps, eot = tokenizer.openai.no_timestamps, tokenizer.eot
    rows = [[*text.start, no_timestamps, *text.tokens, eot] for text in texts]
    width = max(map(len, rows))
    tokens = device.send(torch.tensor([row + [eot] * (width - len(row)) for row in rows]))
    hidden, scores = model.alignment_scores(tokens, cache, slot_index(slots, device))
    results: list[Tensor] = []
    for index, text in enumerate(texts):
        # the output at each of these positions predicts the text's next token
        predicting = slice(len(text.start), len(text.start) + len(text.tokens))
        probs = model.unembed(hidden[index, predicting]).float()[:, :eot].softmax(dim=1)
        predicted = tokens[index, predicting.start + 1 : predicting.stop + 1]
        results += [_attention_matrix(scores[index, :, : len(rows[index])], text), probs.gather(1, predicted[:, None])[:, 0]]
    return PendingAlignment(device.snapshot(results))


def _attention_matrix(scores: Tensor, text: AlignmentText) -> Tensor:
    """Scores (heads, tokens, 1500) → the attention of each token, from <|notimestamps|> on, to each step of the window's own audio.

    (text tokens + 1, steps), normalised over all the tokens.
    """
    weights = scores[..., : max(1, text.frames // FRAMES_PER_TOKEN)].softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    return running_median((weights - mean) / deviation).mean(dim=0)[len(text.start) : -1]
