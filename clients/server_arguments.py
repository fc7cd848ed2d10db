"""The command line's arguments about the server and the transcription, which transcribe.py and bulk_request.py share."""

from __future__ import annotations

import argparse

from endpoint import DEFAULT_MAX_BYTES, DEFAULT_URL, Server, locate

MAX_SECONDS = 1e7
"""The longest time-out that operating systems accept."""


def add_server_arguments(parser: argparse.ArgumentParser, default_url: str | None = DEFAULT_URL) -> None:
    """Add the arguments for the server's address and the transcription's options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings, folders of them, or patterns like 'talks/*.mp3'")
    default = f" (default: {default_url})" if default_url else ""
    parser.add_argument(
        *("--url", "--server"), default=default_url, help=f"the server: http://HOST:8080, the whole address, or OpenAI's base_url{default}"
    )
    add_option_arguments(parser)
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=900.0,
        metavar="SECONDS",
        help="give up after this time without a byte sent or received; a reply that is not streamed sends none before its end "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--max-bytes",
        type=_bytes,
        metavar="N",
        help=f"the largest upload that the server accepts (default: the limit that it reports, else {DEFAULT_MAX_BYTES})",
    )


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the transcription's options."""
    parser.add_argument("--language", help="the speech's language, as de or German (default: detected)")
    parser.add_argument("--task", choices=("transcribe", "translate"), help="translate: into English")
    parser.add_argument("--prompt", help="text that precedes the recording: names, style")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=name_and_value,
        metavar="NAME=VALUE",
        help="any other option, as beam_size=5; repeatable",
    )


def given_options(arguments: argparse.Namespace, **form: str) -> dict[str, str]:
    """The options that the arguments give, and those of the reply's `form`, by name."""
    named = {"language": arguments.language, "task": arguments.task, "prompt": arguments.prompt, **form}
    return dict(arguments.option) | {name: value for name, value in named.items() if value}


def server(arguments: argparse.Namespace, **form: str) -> Server:
    """The server for the arguments. `form`: options of the reply.

    Raises RequestFailed when its address must be completed and it does not answer.
    """
    return Server(locate(arguments.url), given_options(arguments, **form), arguments.timeout, arguments.max_bytes)


def name_and_value(text: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (equals and name.replace("_", "").replace("-", "").isalnum() and name.isascii()):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return name.replace("-", "_"), value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0, as 900")
    return seconds


def _bytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of bytes, as 157286400")
    return int(text)
