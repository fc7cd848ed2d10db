"""Times of text tokens: by what the decoder's alignment heads look at while it reads the text once more (openai-whisper's timing.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..alignment import FRAMES_PER_TOKEN, MEDIAN_FRAMES, jumps
from ..rules import Text
from .cache import Cache, places
from .device import Device, Snapshot
from .model import Model


@dataclass(frozen=True, slots=True)
class Aligning:
    """An alignment on its way."""

    snapshot: Snapshot

    def wait(self) -> list[tuple[list[int], list[float]]]:
        """Of each text: at which step of the encoder's output its tokens begin, and the last one ends, n + 1; their probabilities, n."""
        arrived = self.snapshot.wait()
        steps = jumps([-matrix.double().numpy() for matrix in arrived[::2]])
        return [(each.tolist(), probs.tolist()) for each, probs in zip(steps, arrived[1::2], strict=True)]


def align(
    model: Model, cache: Cache, device: Device, slots: Sequence[int], texts: Sequence[Text], *, no_timestamps: int, eot: int
) -> Aligning:
    """Align each text, none of them empty, with the sound whose keys are still in its slot. One pass for all; nothing waits for it."""
    rows = [[*text.start, no_timestamps, *text.tokens, eot] for text in texts]
    width = max(map(len, rows))
    tokens = device.send(torch.tensor([row + [eot] * (width - len(row)) for row in rows]))
    hidden, scores = model.attention(tokens, cache, places(slots, device))
    wanted: list[Tensor] = []
    for index, text in enumerate(texts):
        # what the model makes of each of these positions is the text's next token
        foretelling = slice(len(text.start), len(text.start) + len(text.tokens))
        probs = model.unembed(hidden[index, foretelling]).float()[:, :eot].softmax(dim=1)
        told = tokens[index, foretelling.start + 1 : foretelling.stop + 1]
        wanted += [_attended(scores[index, :, : len(rows[index])], text), probs.gather(1, told[:, None])[:, 0]]
    return Aligning(device.snapshot(wanted))


def _attended(scores: Tensor, text: Text) -> Tensor:
    """Scores (heads, tokens, 1500) → how much each token, from <|notimestamps|> on, looks at each step of the window's own sound.

    (text tokens + 1, steps), normalised over all the tokens.
    """
    weights = scores[..., : max(1, text.frames // FRAMES_PER_TOKEN)].softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    return _median((weights - mean) / deviation).mean(dim=0)[len(text.start) : -1]


def _median(x: Tensor) -> Tensor:
    """The running median over the last dimension, mirrored at its ends; `x` where it is too short for one.

    whisper.timing.median_filter compiles a kernel of its own on a GPU, for which a server may lack the compiler.
    """
    half = MEDIAN_FRAMES // 2
    if x.shape[-1] <= half:
        return x
    return F.pad(x, (half, half), mode="reflect").unfold(-1, MEDIAN_FRAMES, 1).sort().values[..., half]
