"""The command line's arguments about the model and the core's settings, for the commands that transcribe in process."""

from __future__ import annotations

import argparse

from server_arguments import name_and_value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the settings of the core."""
    parser.add_argument(
        "--model", metavar="NAME", help="the checkpoint: a name, OWNER/NAME, or a path (default: base, on a GPU large-v3-turbo)"
    )
    parser.add_argument("--engine", metavar="NAME", help="the inference engine (default: ct2, on a GPU torch)")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        type=name_and_value,
        metavar="NAME=VALUE",
        help="any other setting, as threads=4; repeatable",
    )


def given_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings that the arguments give, by name."""
    named = {"model": arguments.model, "engine": arguments.engine}
    return dict(arguments.setting) | {name: value for name, value in named.items() if value}
