"""The two graphs of `whispercore.checkpoints.onnx_export` in ONNX Runtime, which reads and writes torch's tensors without copies.

Letters in the shapes as there: b windows, r sequences, n new tokens, k positions kept, h heads, d width of a head, V vocabulary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whisper.decoding import Inference
from whisper.model import ModelDimensions

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.31 has some built in
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _state

ERRORS = (RuntimeError, _state.Fail, _state.RuntimeException, _state.InvalidArgument, _state.NoSuchFile, _state.InvalidProtobuf)
"""The exceptions of ONNX Runtime, some of which are plain RuntimeErrors."""
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""float32 without TF32, and no search for the fastest convolution at every new batch size."""
Named = Mapping[str, Tensor]
_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64, torch.bool: np.bool_}


@dataclass(frozen=True, slots=True)
class AudioKeyValues:
    """The cross-attention's keys and values of b windows, each (b, h, 1500, d), by their names in the graphs."""

    tensors: Named

    def __getitem__(self, windows: Tensor) -> AudioKeyValues:
        """Those of the windows with these indices, int64, which may repeat."""
        (count,) = {len(tensor) for tensor in self.tensors.values()}
        if windows.tolist() == list(range(count)):
            return self
        return AudioKeyValues({name: tensor[windows] for name, tensor in self.tensors.items()})


class Model:
    """Whisper in two sessions on the device. Its methods raise `ERRORS`."""

    def __init__(self, folder: Path, *, device: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._encoder, self._decoder = (_session(folder / f"{name}.onnx", options, device) for name in ("encoder", "decoder"))
        metadata = self._encoder.get_modelmeta().custom_metadata_map
        self.dims = ModelDimensions(**json.loads(metadata["dims"]))
        self.device = torch.device(device)
        self.dtype = torch.float16 if metadata["dtype"] == "float16" else torch.float32
        self._alignment_heads = len(json.loads(self._decoder.get_modelmeta().custom_metadata_map["alignment_heads"]))
        self._caches = [f"{part}.{layer}" for layer in range(self.dims.n_text_layer) for part in ("key", "value")]

    def encode(self, mel: Tensor) -> AudioKeyValues:
        """Spectrograms, float32 (b, n_mels, 3000) → the keys and values of the cross-attention."""
        shape = (len(mel), self.dims.n_text_head, self.dims.n_audio_ctx, self._width)
        audio = {f"cross_{cache}": self._empty(shape) for cache in self._caches}
        self._run(self._encoder, {"mel": mel}, audio)
        return AudioKeyValues(audio)

    def decode(self, tokens: Tensor, kept: Tensor, audio: AudioKeyValues, past: Named) -> tuple[Tensor, dict[str, Tensor]]:
        """New tokens (r, n) → logits (r, k, V) of the positions `kept` (k,), and the KV cache with them.

        `past`: the KV cache of the tokens before, {} at first.
        """
        return self._decode(tokens, kept, audio, past, {})

    def attend(self, tokens: Tensor, audio: AudioKeyValues) -> tuple[Tensor, Tensor]:
        """Whole sequences (r, n) → logits (r, n, V) and the attention scores of the alignment heads, (r, heads, n, 1500)."""
        rows, length = tokens.shape
        attention = torch.empty((rows, self._alignment_heads, length, self.dims.n_audio_ctx), device=self.device)
        logits, _ = self._decode(tokens, torch.arange(length, device=self.device), audio, {}, {"attention": attention})
        return logits, attention

    def _decode(
        self, tokens: Tensor, kept: Tensor, audio: AudioKeyValues, past: Named, extra_outputs: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rows, length = tokens.shape
        before = past[self._caches[0]].shape[2] if past else 0
        shape = (rows, self.dims.n_text_head, before + length, self._width)
        present = {name: self._empty(shape) for name in self._caches}
        empty = self._empty((rows, self.dims.n_text_head, 0, self._width))
        logits = torch.empty((rows, len(kept), self.dims.n_vocab), device=self.device)
        inputs = {"tokens": tokens, "kept": kept, "attend": torch.tensor(bool(extra_outputs)), **audio.tensors}
        inputs |= {f"past_{name}": past.get(name, empty) for name in self._caches}
        outputs = {"logits": logits, **extra_outputs} | {f"present_{name}": tensor for name, tensor in present.items()}
        self._run(self._decoder, inputs, outputs)
        return logits, present

    @property
    def _width(self) -> int:
        return int(self.dims.n_text_state) // int(self.dims.n_text_head)

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _run(self, session: Any, inputs: Named, outputs: Named) -> None:
        """Run a graph on tensors in place: it reads `inputs` and writes into `outputs`."""
        binding = session.io_binding()
        kept = {name: tensor.contiguous() for name, tensor in inputs.items()}  # the binding holds addresses only
        for name, tensor in kept.items():
            binding.bind_input(name, *_binding(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(name, *_binding(tensor))
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # ONNX Runtime computes, and waits, on a stream of its own
        session.run_with_iobinding(binding)


def _session(path: Path, options: Any, device: str) -> Any:
    """A graph on the device. Raises RuntimeError where ONNX Runtime would silently run on the CPU instead, for want of a library."""
    provider = ("CUDAExecutionProvider", _CUDA_OPTIONS) if device == "cuda" else ("CPUExecutionProvider", {})
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    if session.get_providers()[0] != provider[0]:
        raise RuntimeError(f"ONNX Runtime cannot load {provider[0]}: its log says which library of CUDA is missing")
    return session


def _binding(tensor: Tensor) -> tuple[str, int, Any, tuple[int, ...], int]:
    """The arguments with which an IOBinding binds a contiguous tensor: device, index, type, shape, address."""
    return tensor.device.type, tensor.device.index or 0, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr()


@dataclass(slots=True)
class DecoderSteps(Inference):  # type: ignore[misc]
    """The decoder of `whisper.decoding.DecodingTask`, with the windows' indices instead of the encoder's output.

    The first step returns the logits of two positions only: of `sot`, for the probability of no speech, and of the last token.
    """

    model: Model
    audio: AudioKeyValues
    sot: int
    _rows: AudioKeyValues | None = None
    _past: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, tokens: Tensor, audio_features: Tensor) -> Tensor:
        """All tokens (r, length), the windows' indices (r,) → logits (r, 2 or 1, V) of the new tokens."""
        if self._rows is None:
            self._rows = self.audio[audio_features]
        new, kept = (tokens[:, -1:], [0]) if self._past else (tokens, [self.sot, tokens.shape[1] - 1])
        logits, self._past = self.model.decode(new, torch.tensor(kept, device=tokens.device), self._rows, self._past)
        return logits

    def rearrange_kv_cache(self, source_indices: list[int]) -> None:
        """Give each row the KV cache of another row of the same window."""
        if source_indices != list(range(len(source_indices))):
            self._past = {name: tensor[source_indices] for name, tensor in self._past.items()}

    def cleanup_caching(self) -> None:
        """Drop the KV cache."""
        self._rows, self._past = None, {}
