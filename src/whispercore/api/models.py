"""Model names: which names mean a served model, OpenAI's list of models, and the warnings about the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import NotFound
from .reply import Body, json_body
from .transcript_json import warning_fields
from .values import for_message

ALIASES = {"large": "large-v3", "turbo": "large-v3-turbo"}
"""openai-whisper's second names of two models."""
_ANY = re.compile(r"|whisper|whisper-\d+|gpt-.*transcribe.*|default|none|null")
"""Names that stand for any model: no name, the name that TorchServe registers, and those that OpenAI's clients send."""
DEMONSTRATION = (
    "nano is a demonstration model: it knows a few household sentences and digits, and makes up words for anything else."
    " For a real one run python3 clients/download_model.py base, then WHISPER_MODEL=base ./serve.sh; with a network ./serve.sh fetches it"
)


def is_served(requested: str, served: str) -> bool:
    """Whether the name `requested` may mean the model `served`.

    It may be the model's name, the name of a Hugging Face repository with it, or a name that stands for any model.
    """
    return bool(_ANY.fullmatch(requested.strip().lower())) or _short_name(requested) == _short_name(served)


def remarks(requested: str, served: str, *, demonstration: bool) -> tuple[str, ...]:
    """Warnings about the model: another one was requested; the served one is the demonstration model."""
    mismatch = f"the request asks for model {for_message(requested)}, but {served} is served and has answered"
    return (*(() if is_served(requested, served) else (mismatch,)), *((DEMONSTRATION,) if demonstration else ()))


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the server. `loaded`: whether it is in memory; otherwise the first request for it loads it."""

    name: str
    loaded: bool = True
    warnings: tuple[str, ...] = ()


def render_models(served: Sequence[ServedModel], requested: str = "", *, max_audio_bytes: int) -> Body:
    """OpenAI's list of models, first the default one; or, for the model `requested`, its entry.

    `loaded`, and `max_audio_bytes`, the largest upload, are additions to OpenAI's fields. Clients can check the size
    before they send a file. Raises NotFound for a model that is not served.
    """
    if not requested:
        return json_body({"object": "list", "data": [_entry(model, max_audio_bytes) for model in served]})
    if model := next((model for model in served if is_served(requested, model.name)), None):
        return json_body(_entry(model, max_audio_bytes))
    there_is = ", ".join(model.name for model in served)
    raise NotFound(f"no such model: {for_message(requested)}; there is: {there_is}", param="model", code="model_not_found")


def _entry(model: ServedModel, max_audio_bytes: int) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "self-hosted",
        "loaded": model.loaded,
        "max_audio_bytes": max_audio_bytes,
        **warning_fields(model.warnings),
    }


def _short_name(name: str) -> str:
    """`base` for openai/whisper-base, Systran/faster-whisper-base, whisper-base.pt and base-ct2."""
    bare = name.strip().lower().rstrip("/").rpartition("/")[2].removesuffix(".pt").removesuffix("-ct2").removeprefix("faster-")
    bare = re.sub(r"^(distil-)?whisper-", r"\1", bare)
    return ALIASES.get(bare, bare)
