"""The value of one field, as text or JSON → the type of its option.

Raises InvalidRequest with the field's name as the client sent it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import InvalidRequest
from ..languages import LANGUAGES, closest, whisper_code
from ..options import FALLBACK_TEMPERATURES, Granularity, Options, ResponseFormat

MAX_TEXT = 10_000
"""Characters of a text option; the model itself reads at most the last 223 tokens of a prompt."""
MAX_LIST_TEXT = 100_000
"""Characters of a list or an object written as text."""
NONE_WORDS = ("none", "null")
"""Text that stands for no value, or for a list without items."""
_SWITCHES = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def parse_value(name: str, hint: Any, label: str, value: Any) -> Any:
    """`value` as the type `hint` of the option `name`. Error messages call the field `label`."""
    parser = _PARSERS_BY_NAME.get(name)
    return parser(label, value) if parser else _by_type(hint, label, value)


def read_options(values: Mapping[str, Any]) -> Options:
    """The options of a call from Python: values as in a JSON request, tuples for lists, None for no value."""
    hints, parsed = get_type_hints(Options), dict[str, Any]()
    for name, value in values.items():
        if name not in hints:
            raise InvalidRequest(f"unknown option '{name}'; known: {', '.join(sorted(hints))}", param=name)
        plain = list(value) if isinstance(value, tuple) else value
        parsed[name] = None if value is None else parse_value(name, hints[name], name, plain)
    return Options(**parsed)


def for_message(value: Any) -> str:
    """`value` as text for an error message: at most 80 characters, and valid Unicode."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an int of more than 4,300 digits, a deeply nested list
        text = type(value).__name__
    return (text if len(text) <= 80 else text[:80] + "…").encode(errors="replace").decode()


def parse_json(label: str, value: str) -> Any:
    """The value that JSON text stands for."""
    _check_list_text(label, value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # ValueError also for a number of more than 4,300 digits
        raise InvalidRequest(f"{label} is not valid JSON; got {for_message(value)}", param=label) from None


def as_list(label: str, value: Any) -> list[Any]:
    """The items of a list, of a JSON list in text, or of text with commas.

    A single value is a list of one item, `none` an empty list.
    """
    if isinstance(value, str) and value.startswith("["):
        value = parse_json(label, value)
    if isinstance(value, str):
        _check_list_text(label, value)
        return [] if value.lower() in NONE_WORDS else [item.strip() for item in value.split(",")]
    return value if isinstance(value, list) else [value]


def _check_list_text(label: str, value: str) -> None:
    if len(value) > MAX_LIST_TEXT:
        raise InvalidRequest(f"{label} has {len(value)} characters, at most {MAX_LIST_TEXT} are accepted", param=label)


def _by_type(hint: Any, label: str, value: Any) -> Any:
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        return tuple(_by_type(arguments[0], label, item) for item in as_list(label, value))
    if get_origin(hint) is Literal:
        return _choice(arguments, label, value)
    if NoneType in arguments:
        is_none = arguments[0] is not str and isinstance(value, str) and value.lower() in NONE_WORDS
        return None if is_none else _by_type(arguments[0], label, value)
    return _PARSERS_BY_TYPE[hint](label, value)


def _text(label: str, value: Any) -> str:
    """Text of at most `MAX_TEXT` characters, valid Unicode."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{label} must be text; got {for_message(value)}", param=label)
    if len(value) > MAX_TEXT:
        raise InvalidRequest(f"{label} has {len(value)} characters, at most {MAX_TEXT} are accepted", param=label)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRequest(f"{label} is not valid Unicode text: it has an unpaired surrogate", param=label)
    return value


def _choice(choices: tuple[str, ...], label: str, value: Any) -> str:
    choice = _text(label, value).lower()
    if choice not in choices:
        raise InvalidRequest(f"{label} must be one of {', '.join(choices)}; got '{for_message(choice)}'", param=label)
    return choice


def _boolean(label: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _SWITCHES:
        return _SWITCHES[value.lower()]
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise InvalidRequest(f"{label} must be true or false; got {for_message(value)}", param=label)


def _number(label: str, value: Any) -> float:
    """A finite number. JSON's true and false are not numbers, though Python counts them as 1 and 0."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRequest(f"{label} must be a number; got {for_message(value)}", param=label)
    return number


def _integer(label: str, value: Any) -> int:
    number = _number(label, value)
    if not number.is_integer():
        raise InvalidRequest(f"{label} must be a whole number; got {for_message(value)}", param=label)
    return int(number)


# Options with a syntax of their own


def _response_format(label: str, value: Any) -> str:
    if isinstance(value, str) and value.lower() == "diarized_json":
        message = f"{label}: diarized_json is not available, speakers are not identified; use verbose_json"
        raise InvalidRequest(message, param=label, code="unsupported_value")
    return "text" if value == "txt" else _choice(get_args(ResponseFormat), label, value)


def _language(label: str, value: Any) -> str | None:
    """Whisper's code of a language tag or name; None for automatic detection."""
    tag = _text(label, value)
    try:
        return whisper_code(tag)
    except KeyError:
        suggestion = closest(tag)
        hint = f"did you mean '{suggestion}'? " if suggestion else ""
        message = f"{label}: unknown language '{for_message(tag)}'; {hint}known: {', '.join(sorted(LANGUAGES))}"
        raise InvalidRequest(message, param=label) from None


def _languages(label: str, value: Any) -> tuple[str, ...]:
    """Whisper's codes; an empty tuple, which means any language, when `auto` is among them."""
    codes = [_language(label, item) for item in as_list(label, value)]
    return () if None in codes else tuple(code for code in codes if code)


def _audio_track(label: str, value: Any) -> str | None:
    """A track's number as digits, or its language; None for `none` and `auto`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(_integer(label, value))
    track = _text(label, value).strip().lower()
    if track in (*NONE_WORDS, "auto", ""):
        return None
    is_number = track.isascii() and track.isdecimal()
    is_language = track[0].isalpha() and all(character.isalnum() or character in " -_" for character in track)
    if not (is_number or is_language) or len(track) > 35:
        message = f"{label} must be a track's number, from 0, or its language, as in 1 or de; got {for_message(value)}"
        raise InvalidRequest(message, param=label)
    return track


def _temperatures(label: str, value: Any) -> tuple[float, ...]:
    """A list is taken literally. The single number 0 means the whole fallback list, as in OpenAI's API."""
    if isinstance(value, list) or (isinstance(value, str) and ("," in value or value.startswith("["))):
        return tuple(_number(label, item) for item in as_list(label, value))
    temperature = _number(label, value)
    return (temperature,) if temperature else FALLBACK_TEMPERATURES


def _hotwords(label: str, value: Any) -> str | None:
    """One text, as in faster-whisper. The items of OpenAI's list of keywords are joined by commas."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = parse_json(label, value)
    if not isinstance(value, list):
        return _text(label, value)
    return _text(label, ", ".join(_text(label, item).strip() for item in value)) or None


def _clip_timestamps(label: str, value: Any) -> tuple[float, ...]:
    """start,end,start,end,… or a list of objects with `start` and `end`, as in faster-whisper.

    The last end may be left out.
    """
    items = as_list(label, value)
    if not any(isinstance(item, Mapping) for item in items):
        return tuple(_number(label, item) for item in items)
    complete = all(isinstance(item, Mapping) and item.keys() == {"start", "end"} for item in items[:-1])
    if not complete or not isinstance(items[-1], Mapping) or items[-1].keys() not in ({"start"}, {"start", "end"}):
        raise InvalidRequest(f'{label} must be numbers, or objects as in [{{"start": 0, "end": 2.5}}]', param=label)
    return tuple(_number(label, item[name]) for item in items for name in ("start", "end") if name in item)


def _granularities(label: str, value: Any) -> tuple[str, ...]:
    """A list is taken literally. The text `word` means both granularities.

    TorchServe may keep only one value of a repeated field: `word` may be the rest of ["segment", "word"]. Additional
    segments cost nothing.
    """
    granularities = tuple(_choice(get_args(Granularity), label, item) for item in as_list(label, value))
    is_single = isinstance(value, str) and not value.startswith("[")
    return ("word", "segment") if is_single and granularities == ("word",) else granularities or ("segment",)


_PARSERS_BY_TYPE: Mapping[Any, Callable[[str, Any], Any]] = MappingProxyType({str: _text, bool: _boolean, int: _integer, float: _number})
_PARSERS_BY_NAME: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "response_format": _response_format,
        "language": _language,
        "languages": _languages,
        "audio_track": _audio_track,
        "temperature": _temperatures,
        "hotwords": _hotwords,
        "clip_timestamps": _clip_timestamps,
        "timestamp_granularities": _granularities,
    }
)
