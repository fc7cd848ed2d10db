"""Token times from the decoder's attention to the sound: openai-whisper's method (`whisper.timing.find_alignment`), in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from whisper.model import Whisper, disable_sdpa
from whisper.timing import median_filter

from .rules import Text

MEDIAN_FRAMES = 7
FRAMES_PER_TOKEN = 2
AT_ONCE = 16
"""Windows aligned in one pass: each of them holds logits of the whole vocabulary for every token."""


Attend = Callable[[Sequence[int], torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Feeds tokens (windows, tokens) to the decoder, for the texts of these indices: logits (windows, tokens, vocabulary), and the attention
before its softmax of the heads that follow the sound (windows, heads, tokens, 1500)."""


@torch.no_grad()
def align(
    model: Whisper, features: torch.Tensor, texts: Sequence[Text], *, no_timestamps: int, eot: int
) -> list[tuple[list[int], list[float]]]:
    """`align_by` with openai-whisper's model. `features`: (windows, 1500, width), the encoder's."""

    def attend(which: Sequence[int], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _teacher_forced(model, tokens.to(features.device), features[list(which)])

    return align_by(attend, texts, no_timestamps=no_timestamps, eot=eot)


def align_by(attend: Attend, texts: Sequence[Text], *, no_timestamps: int, eot: int) -> list[tuple[list[int], list[float]]]:
    """Align each text, none of them empty, with its window.

    Of each text: at which step of the encoder's output its tokens begin, and the last one ends, n + 1; their probabilities, n.
    """
    found: list[tuple[list[int], list[float]]] = []
    for first in range(0, len(texts), AT_ONCE):
        some = texts[first : first + AT_ONCE]
        rows = [torch.tensor([*text.start, no_timestamps, *text.tokens, eot]) for text in some]
        tokens = pad_sequence(rows, batch_first=True, padding_value=eot)
        logits, attention = attend(range(first, first + len(some)), tokens)
        costs = [-attended(weights, text).double().cpu().numpy() for weights, text in zip(attention, some, strict=True)]
        probs = [_probs(of_window, text, eot) for of_window, text in zip(logits, some, strict=True)]
        found += zip((steps.tolist() for steps in jumps(costs)), probs, strict=True)
    return found


def jumps(costs: Sequence[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.int64]]:
    """The column at which the cheapest path of each matrix (rows, columns) enters each of its rows: dynamic time warping.

    The same path as `whisper.timing.dtw_cpu`, ties included, but computed for all matrices at once, one anti-diagonal after the
    other, by numpy: numba would compile for seconds when the first request comes.
    """
    rows, columns = (max(cost.shape[axis] for cost in costs) for axis in (0, 1))
    skewed = np.zeros((rows + columns - 1, len(costs), rows))
    for index, cost in enumerate(costs):
        row, column = np.indices(cost.shape)
        skewed[row + column, index, row] = cost
    trace = _trace(skewed)
    return [_entered(trace[:, index], *cost.shape) for index, cost in enumerate(costs)]


def _trace(skewed: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """From where the cheapest path comes to each cell: 0 diagonally, 1 from the row before, 2 from the column before.

    Cell (i, j) of a matrix is [i + j, matrix, i], in the argument and in the result; sums are float32, as openai-whisper's.
    """
    diagonals, count, rows = skewed.shape
    trace = np.empty(skewed.shape, np.int8)
    # sums of the last two diagonals; [:, i + 1] is row i, and the row before the first cannot be come from but at the beginning
    last, before = (np.full((count, rows + 1), np.inf, np.float32) for _ in range(2))
    before[:, 0] = 0.0
    for diagonal in range(diagonals):
        diagonally, above, left = before[:, :-1], last[:, :-1], last[:, 1:]
        from_diagonal = (diagonally < above) & (diagonally < left)
        from_above = (above < diagonally) & (above < left)
        trace[diagonal] = np.where(from_diagonal, 0, np.where(from_above, 1, 2))
        cheapest = np.where(from_diagonal, diagonally, np.where(from_above, above, left))
        new = np.full((count, rows + 1), np.inf, np.float32)
        new[:, 1:] = skewed[diagonal] + cheapest
        new[:, diagonal + 2 :] = np.inf  # rows that this diagonal does not cross
        last, before = new, last
    return trace


def _entered(trace: npt.NDArray[np.int8], rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Follow the path back from the last cell, noting for each row the first column on it."""
    entered = np.zeros(rows, np.int64)
    row, column = rows - 1, columns - 1
    while row >= 0:
        entered[row] = column
        step = trace[row + column, row] if column >= 0 else 1
        row -= step != 2
        column -= step != 1
    return entered


def _teacher_forced(model: Whisper, tokens: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (windows, tokens, vocabulary) and the attention of the heads that follow the sound (windows, heads, tokens, 1500)."""
    kept: dict[int, torch.Tensor] = {}
    layers: dict[int, list[int]] = {}
    for layer, head in model.alignment_heads.indices().T.tolist():
        layers.setdefault(layer, []).append(head)

    def keep(layer: int, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        kept[layer] = output[1][:, layers[layer]]

    hooks = [
        model.decoder.blocks[layer].cross_attn.register_forward_hook(lambda _module, _inputs, output, layer=layer: keep(layer, output))
        for layer in layers
    ]
    try:
        with disable_sdpa():  # only openai-whisper's own attention gives its weights away
            logits = model.decoder(tokens, features)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, torch.cat([kept[layer] for layer in layers], dim=1)


def attended(weights: torch.Tensor, text: Text) -> torch.Tensor:
    """Attention (heads, tokens, 1500) → how much each token, from <|notimestamps|> to the last of the text, attends to each step of sound.

    Normalised over the window's own sound, and over its own tokens, as if it were alone.
    """
    length = len(text.start) + len(text.tokens) + 2
    weights = weights[:, :length, : max(1, text.frames // FRAMES_PER_TOKEN)].softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    matrix: torch.Tensor = median_filter((weights - mean) / deviation, MEDIAN_FRAMES).mean(dim=0)
    return matrix[len(text.start) : -1]


def _probs(logits: torch.Tensor, text: Text, eot: int) -> list[float]:
    """The probability of each text token among the text tokens, given those before it."""
    begin = len(text.start)
    probs = logits[begin : begin + len(text.tokens), :eot].softmax(dim=-1)
    chosen: list[float] = probs[torch.arange(len(text.tokens)), list(text.tokens)].tolist()
    return chosen
