"""What clients call a model, and what a reply says about the one that answered."""

from __future__ import annotations

import re

from .values import shown

ALIASES = {"large": "large-v3", "turbo": "large-v3-turbo"}
"""OpenAI's second names of two models."""
_ANY = re.compile(r"|whisper|whisper-\d+|gpt-.*transcribe.*|default|none|null")
"""Names that OpenAI's clients cannot leave out or choose, TorchServe's own name of the model, and none: whatever is served is meant."""
DEMONSTRATION = (
    "nano is a demonstration model: it knows a few household sentences and digits, and makes up words for anything else."
    " For a real one run python3 clients/download_model.py base, then WHISPER_MODEL=base ./serve.sh; with a network ./serve.sh fetches it"
)


def is_served(asked: str, served: str) -> bool:
    """Whether `asked` may name the model `served`: by its own name, a repository's of the Hugging Face Hub, or one that names none."""
    return bool(_ANY.fullmatch(asked.strip().lower())) or _plain(asked) == _plain(served)


def remarks(asked: str, served: str, *, demonstration: bool) -> tuple[str, ...]:
    """What a reply has to say about the model: that it is not the one asked for, that it is the demonstration model."""
    other = f"the request asks for model {shown(asked)}, but {served} is served and has answered" if not is_served(asked, served) else ""
    return tuple(filter(None, (other, DEMONSTRATION if demonstration else "")))


def _plain(name: str) -> str:
    """`base` of openai/whisper-base, Systran/faster-whisper-base, whisper-base.pt, base-ct2."""
    bare = name.strip().lower().rstrip("/").rpartition("/")[2].removesuffix(".pt").removesuffix("-ct2").removeprefix("faster-")
    bare = re.sub(r"^(distil-)?whisper-", r"\1", bare)
    return ALIASES.get(bare, bare)
