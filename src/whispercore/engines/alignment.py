"""Token times from the decoder's attention to the audio: openai-whisper's method (`whisper.timing.find_alignment`), in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from whisper.model import Whisper, disable_sdpa

from ..tokenizer import Tokenizer
from .rules import AlignmentText

MEDIAN_FRAMES = 7
_EXCHANGES = ((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4))
"""Pairs to put in order, one after the other, until the fourth of seven values is their median (Devillard, Fast median search, 1998)."""
FRAMES_PER_TOKEN = 2
WINDOWS_A_PASS = 16
"""Windows aligned in one pass. Each of them needs memory for logits of the whole vocabulary for every token."""


Attend = Callable[[Sequence[int], torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Takes indices of texts and their tokens (windows, tokens), feeds them to the decoder, and returns logits (windows, tokens, vocabulary)
and the alignment heads' attention scores before the softmax (windows, heads, tokens, 1500)."""


@torch.no_grad()
def align(
    model: Whisper, features: torch.Tensor, texts: Sequence[AlignmentText], tokenizer: Tokenizer
) -> list[tuple[Sequence[int], Sequence[float]]]:
    """`align_by` with openai-whisper's model. `features`: (windows, 1500, width), the encoder's output."""

    def attend(indices: Sequence[int], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _teacher_forced(model, tokens.to(features.device), features[list(indices)])

    return align_by(attend, texts, tokenizer)


def align_by(attend: Attend, texts: Sequence[AlignmentText], tokenizer: Tokenizer) -> list[tuple[Sequence[int], Sequence[float]]]:
    """Align each text, none of them empty, with its window.

    For a text of n tokens: the steps of the encoder's output at which they begin, and the last one ends, n + 1; their probabilities, n.
    """
    no_timestamps, eot = tokenizer.openai.no_timestamps, tokenizer.eot
    times: list[tuple[Sequence[int], Sequence[float]]] = []
    for first in range(0, len(texts), WINDOWS_A_PASS):
        part = texts[first : first + WINDOWS_A_PASS]
        rows = [torch.tensor([*text.start, no_timestamps, *text.tokens, eot]) for text in part]
        tokens = pad_sequence(rows, batch_first=True, padding_value=eot)
        logits, attention = attend(range(first, first + len(part)), tokens)
        costs = [-attention_matrix(scores, text).double().cpu().numpy() for scores, text in zip(attention, part, strict=True)]
        probs = [_probs(window_logits, text, eot) for window_logits, text in zip(logits, part, strict=True)]
        times += zip((steps.tolist() for steps in jumps(costs)), probs, strict=True)
    return times


def jumps(costs: Sequence[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.int64]]:
    """Dynamic time warping: the column at which the cheapest path of each matrix (rows, columns) enters each of its rows.

    The same paths as `whisper.timing.dtw_cpu`, ties included. numpy computes all matrices together, one anti-diagonal after the other;
    numba would compile for seconds at the first request.
    """
    rows, columns = (max(cost.shape[axis] for cost in costs) for axis in (0, 1))
    skewed = np.zeros((rows + columns - 1, len(costs), rows))
    for index, cost in enumerate(costs):
        row, column = np.indices(cost.shape)
        skewed[row + column, index, row] = cost
    trace = _trace(skewed)
    return [_entry_columns(trace[:, index], *cost.shape) for index, cost in enumerate(costs)]


def _trace(skewed: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """How the cheapest path enters each cell: 0 diagonally, 1 from the row before, 2 from the column before.

    Cell (i, j) of a matrix is [i + j, matrix, i], in the argument and in the result. Sums are float32, as in openai-whisper.
    """
    diagonals, count, rows = skewed.shape
    trace = np.empty(skewed.shape, np.int8)
    # sums of the last two diagonals; [:, i + 1] is row i, and [:, 0] is the row before the first, in which only the path's start is finite
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


def _entry_columns(trace: npt.NDArray[np.int8], rows: int, columns: int) -> npt.NDArray[np.int64]:
    """The first column of the path in each row, found by following the path back from the last cell."""
    columns_entered = np.zeros(rows, np.int64)
    row, column = rows - 1, columns - 1
    while row >= 0:
        columns_entered[row] = column
        step = trace[row + column, row] if column >= 0 else 1
        row -= step != 2
        column -= step != 1
    return columns_entered


def _teacher_forced(model: Whisper, tokens: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (windows, tokens, vocabulary) and the attention scores of the alignment heads (windows, heads, tokens, 1500)."""
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
        with disable_sdpa():  # only openai-whisper's own attention returns its scores
            logits = model.decoder(tokens, features)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, torch.cat([kept[layer] for layer in layers], dim=1)


def attention_matrix(scores: torch.Tensor, text: AlignmentText) -> torch.Tensor:
    """Scores (heads, tokens, 1500) → the attention of each token, from <|notimestamps|> to the text's last, to each step of audio.

    It is normalised over the window's own audio and its own tokens, so that padding and the rest of the batch have no influence.
    """
    length = len(text.start) + len(text.tokens) + 2
    weights = scores[:, :length, : max(1, text.frames // FRAMES_PER_TOKEN)].softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    return running_median((weights - mean) / deviation).mean(dim=0)[len(text.start) : -1]


def running_median(x: torch.Tensor) -> torch.Tensor:
    """The median of seven neighbours in the last dimension, mirrored at its ends; `x` where it is too short for one.

    The same as `whisper.timing.median_filter`, which sorts every seven, and on a GPU compiles a kernel of its own.
    """
    half = MEDIAN_FRAMES // 2
    if x.shape[-1] <= half:
        return x
    padded = F.pad(x, (half, half), mode="reflect")
    values = [padded[..., first : first + x.shape[-1]] for first in range(MEDIAN_FRAMES)]
    for low, high in _EXCHANGES:
        values[low], values[high] = torch.minimum(values[low], values[high]), torch.maximum(values[low], values[high])
    return values[half]


def _probs(logits: torch.Tensor, text: AlignmentText, eot: int) -> list[float]:
    """The probability of each token of the text among all text tokens, given the tokens before it."""
    begin = len(text.start)
    probs = logits[begin : begin + len(text.tokens), :eot].softmax(dim=-1)
    chosen: list[float] = probs[torch.arange(len(text.tokens)), list(text.tokens)].tolist()
    return chosen
