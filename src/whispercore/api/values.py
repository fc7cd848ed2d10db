"""One field's value, text or typed, as the type that its option has. Raises InvalidRequest that names the field as it was sent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from whisper.tokenizer import LANGUAGES

from ..errors import InvalidRequest
from ..languages import closest, whisper_code
from ..options import FALLBACK_TEMPERATURES, Granularity, Options, ResponseFormat

MAX_TEXT = 10_000
"""Characters of a text option; the model itself reads at most the last 223 tokens of a prompt."""
MAX_LIST_TEXT = 100_000
"""Characters of a list or an object written as text."""
OFF = ("none", "null")
"""How text says that an option has no value, or a list no items."""
_SWITCHES = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def read(name: str, hint: Any, label: str, value: Any) -> Any:
    """`value` as the option `name` has it, whose type is `hint`; messages call it `label`."""
    own = _OWN_READERS.get(name)
    return own(label, value) if own else _typed(hint, label, value)


def read_options(given: Mapping[str, Any]) -> Options:
    """The options that Python names: values as in a JSON request, tuples as lists, None where an option may be none."""
    hints, values = get_type_hints(Options), dict[str, Any]()
    for name, value in given.items():
        if name not in hints:
            raise InvalidRequest(f"unknown option '{name}'; known: {', '.join(sorted(hints))}", param=name)
        plain = list(value) if isinstance(value, tuple) else value
        values[name] = None if value is None else read(name, hints[name], name, plain)
    return Options(**values)


def text(label: str, value: Any) -> str:
    """Text of a bounded length, valid Unicode."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{label} must be text; got {shown(value)}", param=label)
    if len(value) > MAX_TEXT:
        raise InvalidRequest(f"{label} has {len(value)} characters, at most {MAX_TEXT} are accepted", param=label)
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InvalidRequest(f"{label} is not valid Unicode text: it has an unpaired surrogate", param=label)
    return value


def parsed(label: str, value: str) -> Any:
    """The value of JSON in text."""
    bounded = _bounded(label, value)
    try:
        return json.loads(bounded)
    except (ValueError, RecursionError):  # ValueError also for a number of more than 4,300 digits
        raise InvalidRequest(f"{label} is not valid JSON; got {shown(value)}", param=label) from None


def listed(label: str, value: Any) -> list[Any]:
    """The items of a list, of its JSON, or of text with commas; a single value is a list of one, none of no items."""
    if isinstance(value, str) and value.startswith("["):
        value = parsed(label, value)
    if isinstance(value, str):
        return [] if value.lower() in OFF else [item.strip() for item in _bounded(label, value).split(",")]
    return value if isinstance(value, list) else [value]


def _bounded(label: str, value: str) -> str:
    if len(value) > MAX_LIST_TEXT:
        raise InvalidRequest(f"{label} has {len(value)} characters, at most {MAX_LIST_TEXT} are accepted", param=label)
    return value


def shown(value: Any) -> str:
    """`value` for a message: short, and whole Unicode."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an int of more than 4,300 digits, a list in a list in a list
        text = type(value).__name__
    return (text if len(text) <= 80 else text[:80] + "…").encode(errors="replace").decode()


def _typed(hint: Any, label: str, value: Any) -> Any:
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        return tuple(_typed(kinds[0], label, one) for one in listed(label, value))
    if get_origin(hint) is Literal:
        return _choice(kinds, label, value)
    if NoneType in kinds:
        off = kinds[0] is not str and isinstance(value, str) and value.lower() in OFF
        return None if off else _typed(kinds[0], label, value)
    return _READERS[hint](label, value)


def _choice(choices: tuple[str, ...], label: str, value: Any) -> str:
    wanted = text(label, value).lower()
    if wanted not in choices:
        raise InvalidRequest(f"{label} must be one of {', '.join(choices)}; got '{shown(wanted)}'", param=label)
    return wanted


def _boolean(label: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _SWITCHES:
        return _SWITCHES[value.lower()]
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise InvalidRequest(f"{label} must be true or false; got {shown(value)}", param=label)


def _number(label: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRequest(f"{label} must be a number; got {shown(value)}", param=label)
    return number


def _integer(label: str, value: Any) -> int:
    number = _number(label, value)
    if not number.is_integer():
        raise InvalidRequest(f"{label} must be a whole number; got {shown(value)}", param=label)
    return int(number)


# Options that are read in a way of their own


def _response_format(label: str, value: Any) -> str:
    if isinstance(value, str) and value.lower() == "diarized_json":
        message = f"{label}: diarized_json is not available, speakers are not told apart; take verbose_json"
        raise InvalidRequest(message, param=label, code="unsupported_value")
    return "text" if value == "txt" else _choice(get_args(ResponseFormat), label, value)


def _language(label: str, value: Any) -> str | None:
    """Whisper's code of a language tag or name; None when the language is to be detected."""
    tag = text(label, value)
    try:
        return whisper_code(tag)
    except KeyError:
        close = closest(tag)
        hint = f"did you mean '{close}'? " if close else ""
        message = f"{label}: unknown language '{shown(tag)}'; {hint}known: {', '.join(sorted(LANGUAGES))}"
        raise InvalidRequest(message, param=label) from None


def _languages(label: str, value: Any) -> tuple[str, ...]:
    """The code of each; with `auto` among them it may be any language."""
    codes = [_language(label, one) for one in listed(label, value)]
    return () if None in codes else tuple(code for code in codes if code)


def _audio_track(label: str, value: Any) -> str | None:
    """A track's number as digits, or its language; None for none and auto."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(_integer(label, value))
    wanted = text(label, value).strip().lower()
    if wanted in (*OFF, "auto", ""):
        return None
    number = wanted.isascii() and wanted.isdecimal()
    language = wanted[0].isalpha() and all(letter.isalnum() or letter in " -_" for letter in wanted)
    if not (number or language) or len(wanted) > 35:
        raise InvalidRequest(f"{label} must be a track's number, from 0, or its language, as in 1 or de; got {shown(value)}", param=label)
    return wanted


def _temperatures(label: str, value: Any) -> tuple[float, ...]:
    """A list as it is; the number 0 means the whole fallback list, as in OpenAI's API."""
    if isinstance(value, list) or (isinstance(value, str) and ("," in value or value.startswith("["))):
        return tuple(_number(label, one) for one in listed(label, value))
    one = _number(label, value)
    return (one,) if one else FALLBACK_TEMPERATURES


def _phrases(label: str, value: Any) -> str | None:
    """Hot words as one text, as faster-whisper takes them; OpenAI's list of keywords is joined by commas."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = parsed(label, value)
    if not isinstance(value, list):
        return text(label, value)
    return text(label, ", ".join(text(label, one).strip() for one in value)) or None


def _clips(label: str, value: Any) -> tuple[float, ...]:
    """start,end,start,end,… or faster-whisper's list of objects that have a start and an end."""
    items = listed(label, value)
    if not any(isinstance(item, Mapping) for item in items):
        return tuple(_number(label, item) for item in items)
    whole = all(isinstance(item, Mapping) and item.keys() == {"start", "end"} for item in items[:-1])
    if not whole or not isinstance(items[-1], Mapping) or items[-1].keys() not in ({"start"}, {"start", "end"}):
        raise InvalidRequest(f'{label} must be numbers, or objects as in [{{"start": 0, "end": 2.5}}]', param=label)
    return tuple(_number(label, item[name]) for item in items for name in ("start", "end") if name in item)


def _granularities(label: str, value: Any) -> tuple[str, ...]:
    """A list as it is. `word` by itself may be what TorchServe has left of ["segment", "word"]; segments cost nothing: both."""
    wanted = tuple(_choice(get_args(Granularity), label, one) for one in listed(label, value))
    alone = isinstance(value, str) and not value.startswith("[")
    return ("word", "segment") if alone and wanted == ("word",) else wanted or ("segment",)


_READERS: Mapping[Any, Callable[[str, Any], Any]] = MappingProxyType({str: text, bool: _boolean, int: _integer, float: _number})
_OWN_READERS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "response_format": _response_format,
        "language": _language,
        "languages": _languages,
        "audio_track": _audio_track,
        "temperature": _temperatures,
        "hotwords": _phrases,
        "clip_timestamps": _clips,
        "timestamp_granularities": _granularities,
    }
)
