"""The tables of docs/reference.md, made from the dataclasses themselves: `python -m whispercore.reference > docs/reference.md`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from .options import Options
from .settings import ENVIRONMENT_PREFIX, Settings

HEADER = """# Reference

Made by `python -m whispercore.reference`; a test holds it against the code.

## Options of a request

Form fields, JSON fields, query fields on `/invocations`, or headers `X-Whisper-<Option>` (with dashes) beside a raw body.
"""

SETTINGS_HEADER = """
## Settings of the server

The `whisper:` section of `config/model-config.yaml`, each overridden by its environment variable.
"""


def reference() -> str:
    """The whole page."""
    options = _table(("option", "type", "default", "range", "meaning"), (_option_row(item) for item in fields(Options)))
    settings = _table(("setting", "variable", "default", "range", "meaning"), (_setting_row(item) for item in fields(Settings)))
    return "\n".join([HEADER, options, SETTINGS_HEADER, settings, ""])


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _option_row(item: Any) -> tuple[str, ...]:
    return f"`{item.name}`", str(item.type).replace("|", "or"), _default(item.default), _range(item.metadata), item.metadata["doc"]


def _setting_row(item: Any) -> tuple[str, ...]:
    variable = f"`{ENVIRONMENT_PREFIX}{item.name.upper()}`"
    return f"`{item.name}`", variable, _default(item.default), _range(item.metadata), item.metadata["doc"]


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)


def _range(metadata: Any) -> str:
    if metadata["choices"]:
        return ", ".join(metadata["choices"])
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if low is None and high is None:
        return ""
    return f"{low:g} to {high:g}" if low is not None and high is not None else f"from {low:g}" if low is not None else f"to {high:g}"


if __name__ == "__main__":
    print(reference(), end="")
