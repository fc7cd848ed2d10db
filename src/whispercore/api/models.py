"""Model names: which names mean the served model, OpenAI's list of models, and the warnings about the model."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def render_models(served: str, requested: str = "", warnings: Sequence[str] = (), *, max_audio_bytes: int) -> Body:
    """OpenAI's list of models, which has one entry; or, for the model `requested`, its entry.

    `max_audio_bytes`: the largest upload, an addition to OpenAI's fields. Clients can check it before they send a file.
    Raises NotFound for a model that is not served.
    """
    if requested and not is_served(requested, served):
        raise NotFound(f"no such model: {for_message(requested)}; there is: {served}", param="model", code="model_not_found")
    model = {
        "id": served,
        "object": "model",
        "created": 0,
        "owned_by": "self-hosted",
        "max_audio_bytes": max_audio_bytes,
        **warning_fields(warnings),
    }
    return json_body(model if requested else {"object": "list", "data": [model]})


def _short_name(name: str) -> str:
    """`base` for openai/whisper-base, Systran/faster-whisper-base, whisper-base.pt and base-ct2."""
    bare = name.strip().lower().rstrip("/").rpartition("/")[2].removesuffix(".pt").removesuffix("-ct2").removeprefix("faster-")
    bare = re.sub(r"^(distil-)?whisper-", r"\1", bare)
    return ALIASES.get(bare, bare)
