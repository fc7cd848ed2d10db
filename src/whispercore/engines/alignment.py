"""Token times from the decoder's attention to the audio: openai-whisper's method (`whisper.timing.find_alignment`), in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numba
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


Costs = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.int64]]
_SIGNATURE = "int64[::1](float64[:, ::1])"
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

    The same paths as `whisper.timing.dtw_cpu`, ties included.
    """
    return [_entry_columns(np.ascontiguousarray(cost)) for cost in costs]


def _compiled(function: Costs) -> Costs:
    """`function` compiled by numba when this module is imported, so that no request waits for it.

    numba keeps the result beside this file or in the user's cache, and later starts need 1 s instead of 2. Where neither
    folder can be written, as in a read-only container, every start compiles. Other threads run while the function
    does: it holds no GIL.
    """
    try:
        return numba.njit(_SIGNATURE, nogil=True, cache=True)(function)
    except (RuntimeError, OSError):  # no folder, or no room in it
        return numba.njit(_SIGNATURE, nogil=True)(function)


@_compiled
def _entry_columns(cost: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """In numpy, one anti-diagonal after the other, a window took 17 ms, all of it under the GIL; this takes 1 ms. Sums are
    float32, as in openai-whisper.
    """
    rows, columns = cost.shape
    # how the cheapest path enters each cell: 0 diagonally, 1 from the row before, 2 from the column before
    trace = np.empty((rows, columns), np.int8)
    # [j + 1] is column j of the last row; [0] is the column before the first, in which only the path's start is finite
    sums = np.full(columns + 1, np.inf, np.float32)
    sums[0] = 0.0
    for row in range(rows):
        diagonally, left = sums[0], np.float32(np.inf)
        sums[0] = np.inf
        for column in range(columns):
            above = sums[column + 1]
            if diagonally < above and diagonally < left:
                cheapest, trace[row, column] = diagonally, 0
            elif above < diagonally and above < left:
                cheapest, trace[row, column] = above, 1
            else:
                cheapest, trace[row, column] = left, 2
            left = np.float32(cost[row, column] + cheapest)
            diagonally, sums[column + 1] = above, left
    entered = np.zeros(rows, np.int64)
    row, column = rows - 1, columns - 1
    while row >= 0:
        entered[row] = column
        step = trace[row, column] if column >= 0 else 1
        if step != 2:
            row -= 1
        if step != 1:
            column -= 1
    return entered


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

    The same as `whisper.timing.median_filter`, which sorts every seven values. On a GPU that function compiles a kernel.
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
