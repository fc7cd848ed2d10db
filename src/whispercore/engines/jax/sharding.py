"""How arrays are split over devices: a mesh, and rules from a weight's name to the axis along which it is split.

The `model` axis splits a matrix so that each layer needs one sum over devices per attention and per feed-forward (Megatron-LM,
Shoeybi et al. 2019); the `data` axis splits the batch. XLA inserts the communication (GSPMD, Xu et al. 2021).
"""

from __future__ import annotations

import math
import re

import jax
import numpy as np
import torch
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from ...checkpoints import Checkpoint
from ...errors import ConfigurationError
from ..rules import first_line
from .model import Params

RULES = (
    (r"\.(query|key|value)\.weight$", Spec(None, "model")),
    (r"\.(query|value)\.bias$", Spec("model")),
    (r"\.out\.weight$", Spec("model", None)),
    (r"\.mlp\.0\.weight$", Spec(None, "model")),
    (r"\.mlp\.0\.bias$", Spec("model")),
    (r"\.mlp\.2\.weight$", Spec("model", None)),
    (r"\.token_embedding\.weight$", Spec("model", None)),
    (r"", Spec()),
)
"""The first pattern that matches a weight's name gives the axis along which it is split. Linear weights are (in, out)."""


def make_mesh(shape: str, platform: str) -> Mesh:
    """A mesh with axes data and model. `shape`: DATAxMODEL, such as 2x4; auto: every device of `platform` on the data axis.

    Raises ConfigurationError when the platform is missing or has too few devices.
    """
    try:
        devices = jax.local_devices(backend=platform)
    except RuntimeError as error:
        raise ConfigurationError(f"JAX has no {platform} here ({first_line(error)}): {_INSTALL}", param="device") from None
    data, model = (len(devices), 1) if shape == "auto" else _sides(shape)
    if data * model > len(devices):
        message = f"jax_mesh {shape} needs {data * model} devices; JAX has {len(devices)} ({platform})"
        raise ConfigurationError(message, param="jax_mesh")
    grid = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For an array whose first axis is the batch."""
    return NamedSharding(mesh, Spec("data"))


def padded_vocabulary(vocabulary: int, mesh: Mesh) -> int:
    """Rows of the embedding, padded with zeros: 51,865 rows could be split evenly over 5, 11, 23, … devices only."""
    multiple = math.lcm(128, mesh.shape["model"])
    return -(-vocabulary // multiple) * multiple


def spec_of(name: str) -> Spec:
    """The partition of the weight `name`, by `RULES`."""
    return next(spec for pattern, spec in RULES if re.search(pattern, name))


def load_params(checkpoint: Checkpoint, mesh: Mesh, dtype: jax.typing.DTypeLike) -> Params:
    """A checkpoint's tensors by OpenAI's names → the tree of arrays on the mesh's devices, large weights in `dtype`.

    Raises ConfigurationError when the model's heads cannot be split evenly.
    """
    parts = mesh.shape["model"]
    for heads in (checkpoint.dims.n_audio_head, checkpoint.dims.n_text_head):
        if heads % parts:
            message = f"{checkpoint.name} has {heads} heads, which cannot be split over {parts} devices: choose another jax_mesh"
            raise ConfigurationError(message, param="jax_mesh")
    tree: Params = {}
    for name, tensor in checkpoint.state.items():
        weight = _weight(name, tensor, dtype)
        if name == "decoder.token_embedding.weight":
            weight = np.pad(weight, ((0, padded_vocabulary(len(weight), mesh) - len(weight)), (0, 0)))
        _set(tree, name.split("."), jax.device_put(weight, NamedSharding(mesh, spec_of(name))))
    for half in tree.values():
        half["blocks"] = [half["blocks"][str(i)] for i in range(len(half["blocks"]))]
    return tree


def _weight(name: str, tensor: torch.Tensor, dtype: jax.typing.DTypeLike) -> np.ndarray:
    """As the forward pass needs it. Normalisation and positions stay float32, in which openai-whisper computes them."""
    weight: np.ndarray = tensor.float().numpy()
    if weight.ndim == 2 and name.endswith(".weight") and "embedding" not in name:
        weight = weight.T
    stays_float32 = "positional_embedding" in name or re.search(r"(_ln|\.ln|\.ln_post)\.(weight|bias)$", name)
    return weight if stays_float32 else weight.astype(dtype)


def _set(tree: Params, path: list[str], array: jax.Array) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = array


def _sides(shape: str) -> tuple[int, int]:
    """DATAxMODEL as two numbers."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape)
    if match is None:
        raise ConfigurationError(f"jax_mesh must be auto or DATAxMODEL, such as 2x4; got '{shape}'", param="jax_mesh")
    return int(match[1]), int(match[2])


_INSTALL = 'pip install "jax[cuda13]" for an NVIDIA GPU, or set device: cpu'
