"""docs/reference.md, generated from the dataclasses: `python -m whispercore.api.reference > docs/reference.md`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from ..catalogue import ENGINES
from ..options import Options, Reply
from ..settings import ENVIRONMENT_PREFIX, Settings
from .fields import ALIASES, IGNORED, OBJECT_FIELDS, REFUSED

HEADER = """# Reference

Made by `python -m whispercore.api.reference`; a test holds it against the code.

## Options of a request

An option is a form field, a field of a JSON object, or a query field on `/invocations`. Beside a raw body it is a
header `X-Whisper-<Option>`, with dashes: `X-Whisper-Beam-Size: 5`. Where a proxy drops headers, it is a parameter of
Content-Type: `audio/flac; x-whisper-beam-size=5`. The paths of OpenAI's API take all of them too.

- An empty field counts as not sent.
- A field that is not in these tables gets a 400, and so does an option that the engine does not support.
- An unknown field that switches something off (`false`, `0`, `no`, `off`, `none`, `null` or empty), such as
  `diarize=false`, is accepted unless its name looks like a misspelt option.
- A switch is `true`, `1`, `yes`, `on` or `false`, `0`, `no`, `off`.
- A language is Whisper's code (`en`), any ISO 639 code (`eng`, `ger`), a tag or locale (`pt-BR`, `zh_Hant_TW`,
  `en_US.UTF-8`), an English name or most native names. `auto`, `detect`, `none` and `null` detect it.
- A list is JSON (`[0, 0.4]`), text with commas (`0,0.4`) or a repeated field `name[]`; `none` is an empty list.
- `none` also removes a default, such as that of `logprob_threshold`.
- `temperature` 0 alone means the whole default list, as in OpenAI's API; `[0]` is 0 only.
- `clip_timestamps` may be objects: `[{"start": 0, "end": 2.5}]`.
"""

REPLY_HEADER = """
## Options of the reply

[Replies](replies.md) shows an example of each format, stream and error.

- Without `response_format` the `Accept` header selects the format. Without either it is `json`: OpenAI's fields on
  OpenAI's paths, and segments on the others.
- `timestamp_granularities` needs `verbose_json` on OpenAI's paths.
- `stream` needs `json` or `text` on OpenAI's paths, and works with every format on the others.
"""

ALIASES_HEADER = """
## Other names

Names that OpenAI's API and other servers use for these options.

- A part `name[part]` may also be sent in a JSON object `name`.
- `model` takes any name. A reply warns when the name is not that of the served model. `base` may be called `base`,
  `whisper-base`, `openai/whisper-base`, `Systran/faster-whisper-base`, `whisper-1` or another name of OpenAI's.
- `translate`, `true` or `false`, is a short form of `task`.
- `chunking_strategy`, `auto` or `server_vad`, switches the VAD on.
- `keywords` and `hotwords` may be lists; their items are joined by `, `.
"""

SETTINGS_HEADER = """
## Settings of the server

The `whisper:` section of `config/model-config.yaml`. An environment variable overrides each setting.
A misspelt variable (`WHISPER_MODLE`) stops the start.
"""


def reference() -> str:
    """The whole page."""
    columns = ("type", "default", "range", "meaning")
    options = _table(("option", *columns, "engines"), ((*_row(Options, item), _engines(item.name)) for item in fields(Options)))
    reply = _table(("option", *columns), (_row(Reply, item) for item in fields(Reply)))
    aliases = _table(("name", "means"), ((f"`{name}`", f"`{own}`") for name, own in ALIASES.items()))
    refused = _table(("not available", "reason"), ((f"`{name}`", reason) for name, reason in REFUSED.items() if name not in OBJECT_FIELDS))
    ignored = f"Accepted without effect: {', '.join(f'`{name}`' for name in IGNORED)}."
    settings = _table(("setting", "variable", *columns[1:]), (_setting_row(item) for item in fields(Settings)))
    return "\n".join(
        [HEADER, options, REPLY_HEADER, reply, ALIASES_HEADER, aliases, "", refused, "", ignored, SETTINGS_HEADER, settings, ""]
    )


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _row(kind: type, item: Any) -> tuple[str, ...]:
    hint = _type(get_type_hints(kind)[item.name])
    return f"`{item.name}`", hint, _default(item.default), _range(item.metadata), item.metadata["doc"]


def _type(hint: Any) -> str:
    """A type hint as the tables write it: `float or none`, `list of str`; a Literal is `str`."""
    arguments = get_args(hint)
    if not arguments:
        return str(hint.__name__)
    if type(None) in arguments:
        return f"{_type(arguments[0])} or none"
    return f"list of {_type(arguments[0])}" if Ellipsis in arguments else "str"


def _engines(option: str) -> str:
    supporting = [name for name, engine in ENGINES.items() if option not in engine.unsupported]
    return "all" if len(supporting) == len(ENGINES) else ", ".join(supporting)


def _setting_row(item: Any) -> tuple[str, ...]:
    variable = f"`{ENVIRONMENT_PREFIX}{item.name.upper()}`"
    return f"`{item.name}`", variable, _default(item.default), _range(item.metadata), item.metadata["doc"]


def _default(value: Any) -> str:
    if value in (None, (), ""):
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


def _range(metadata: Any) -> str:
    if metadata["choices"]:
        return ", ".join(metadata["choices"])
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if low is not None and high is not None:
        return f"{low:.9g} to {high:.9g}"
    if low is not None:
        return f"from {low:.9g}"
    return "" if high is None else f"to {high:.9g}"


if __name__ == "__main__":
    print(reference(), end="")
