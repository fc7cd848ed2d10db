"""The tables of docs/reference.md, made from the dataclasses themselves: `python -m whispercore.api.reference > docs/reference.md`."""

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

Form fields, JSON fields, query fields on `/invocations`, or headers `X-Whisper-<Option>` (with dashes) beside a raw body. The official
paths of OpenAI's API take them all as well. An empty field counts as not sent; a field that is not in these tables is refused with a
400, and so is an option that the engine cannot honour. An unknown field that asks for nothing (`false`, `0`, `no`, `off`, `none`,
`null`, empty), as `diarize=false` does, passes unless its name looks like one of these misspelt.

A switch is `true`, `1`, `yes`, `on` or `false`, `0`, `no`, `off`. A language is Whisper's code (`en`), any ISO 639 code (`eng`, `ger`),
a tag or locale (`pt-BR`, `zh_Hant_TW`, `en_US.UTF-8`), an English name or most native ones; `auto`, `detect`, `none` and `null` detect it.

A list is JSON (`[0, 0.4]`), text with commas (`0,0.4`) or a repeated field `name[]`; `none` is an empty one. `none` also switches off
what has a default but may be none, such as `logprob_threshold`. `temperature` 0 by itself means the whole default list, as in
OpenAI's API; `[0]` is 0 only. `clip_timestamps` may be objects: `[{"start": 0, "end": 2.5}]`.
"""

REPLY_HEADER = """
## The form of the reply

Without `response_format` the `Accept` header decides; without either it is `json`, OpenAI's on its paths, with segments on the others.
`timestamp_granularities` needs `verbose_json` on OpenAI's paths; `stream` needs `json` or `text` there, and works with every format on
the others.

A stream is OpenAI's server-sent events on its paths: `transcript.text.delta`, whose deltas make the text, and `transcript.text.done`.
On the others it is newline-delimited JSON, each line with a `type`: `segment` as in `json`, with
`"progress": {"seconds": 31.5, "duration": 60.0}` (`duration` is null while unknown), `progress` with nothing else, and last
`transcript`, the whole reply. With `text`, `srt`, `vtt` or `tsv` that line has the fields of `json`, and the finished file in
`rendered`. A stream that fails ends with `error`, the same object as in a refusal.

Beyond OpenAI's fields, `json` and `verbose_json` tell the `model` that answered; `dropped`, the text that a guard took for no speech, with
its `reason` (not in OpenAI's `json`); `language_probability` of a detected language; `probability` of a word; `channel` of a segment when
channels are transcribed apart, and its `language` when each has its own; `audio_tracks`, the sound tracks of a file with several, each
with `index`, `language` and `title`. `warnings`, in every JSON reply and in the last line or event of
a stream, tell what was wrong with the input, which passages were left out and how to keep them, why there is no text, and that another
model than the one asked for has answered. The header `x-whisper-model` names the model too; with `text`, `srt`, `vtt` and `tsv` the
warnings are in the header `x-whisper-warnings`.
"""

ALIASES_HEADER = """
## Other names

What OpenAI's API and other servers call some of these. A part `name[part]` may also be sent in a JSON object `name`. `model` takes any
name; a reply warns when it is another model's than the one served, which may be called `base`, `whisper-base`, `openai/whisper-base`,
`Systran/faster-whisper-base`, `whisper-1` or by another of OpenAI's names. `translate`, `true` or `false`, is a short form of
`task`; `chunking_strategy`, `auto` or `server_vad`, switches the VAD on; `keywords` and `hotwords` may be lists, joined by `, `.
"""

SETTINGS_HEADER = """
## Settings of the server

The `whisper:` section of `config/model-config.yaml`, each overridden by its environment variable.
A misspelt variable (`WHISPER_MODLE`) stops the start.
"""


def reference() -> str:
    """The whole page."""
    titles = ("type", "default", "range", "meaning")
    options = _table(("option", *titles, "engines"), ((*_row(Options, item), _engines(item.name)) for item in fields(Options)))
    reply = _table(("field", *titles), (_row(Reply, item) for item in fields(Reply)))
    aliases = _table(("name", "means"), ((f"`{name}`", f"`{own}`") for name, own in ALIASES.items()))
    refused = _table(("not available", "because"), ((f"`{name}`", why) for name, why in REFUSED.items() if name not in OBJECT_FIELDS))
    ignored = f"Without effect, whatever they say: {', '.join(f'`{name}`' for name in IGNORED)}."
    settings = _table(("setting", "variable", *titles[1:]), (_setting_row(item) for item in fields(Settings)))
    return "\n".join(
        [HEADER, options, REPLY_HEADER, reply, ALIASES_HEADER, aliases, "", refused, "", ignored, SETTINGS_HEADER, settings, ""]
    )


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(kind: type, item: Any) -> tuple[str, ...]:
    hint = _type(get_type_hints(kind)[item.name])
    return f"`{item.name}`", hint, _default(item.default), _range(item.metadata), item.metadata["doc"]


def _type(hint: Any) -> str:
    """A type in words: a Literal is text, `float | None` a float or none, a tuple a list."""
    kinds = get_args(hint)
    if not kinds:
        return str(hint.__name__)
    if type(None) in kinds:
        return f"{_type(kinds[0])} or none"
    return f"list of {_type(kinds[0])}" if Ellipsis in kinds else "str"


def _engines(option: str) -> str:
    able = [name for name, engine in ENGINES.items() if option not in engine.unsupported]
    return "all" if len(able) == len(ENGINES) else ", ".join(able)


def _setting_row(item: Any) -> tuple[str, ...]:
    variable = f"`{ENVIRONMENT_PREFIX}{item.name.upper()}`"
    return f"`{item.name}`", variable, _default(item.default), _range(item.metadata), item.metadata["doc"]


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


def _range(metadata: Any) -> str:
    if metadata["choices"]:
        return ", ".join(metadata["choices"])
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if low is None and high is None:
        return ""
    return (
        f"{low:.9g} to {high:.9g}" if low is not None and high is not None else f"from {low:.9g}" if low is not None else f"to {high:.9g}"
    )


if __name__ == "__main__":
    print(reference(), end="")
