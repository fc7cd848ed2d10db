"""The console command `whispercore`, which `pip install` makes. Its subcommands are the clients of this folder.

whispercore transcribe meeting.mp4
whispercore download base
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

SUBCOMMANDS = {
    "transcribe": ("transcribe.main_here", "transcribe recordings in this process, or with --url by a server"),
    "batch": ("batch.main", "transcribe a folder, a list or an S3 prefix; resumable; with --runner ray on many machines"),
    "download": ("download_model.main", "download a Whisper checkpoint and verify its hashes"),
    "convert": ("convert_model.main", "convert a checkpoint into another form"),
    "bulk": ("bulk_request.main", "load test: many recordings at once, then latency, throughput and errors"),
}
"""For each subcommand the client's function, and the line in the list of subcommands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand. Exit status: the client's; 2 for an unknown subcommand, 1 when a package is missing."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name not in SUBCOMMANDS:
        print(f"{_usage()}\n\nerror: {f'unknown subcommand {name!r}' if name else 'a subcommand is missing'}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(Path(__file__).parent))  # the clients import each other by file name, as scripts do
    sys.argv[:] = [f"whispercore {name}", *arguments[1:]]
    module, _, function = SUBCOMMANDS[name][0].partition(".")
    try:
        client = importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(f"error: whispercore {name} needs the package {error.name}: pip install whispercore", file=sys.stderr)
        return 1
    from environment import run  # here: found only with the path above

    return run(getattr(client, function))


def _usage() -> str:
    rows = "\n".join(f"  {name:12}{summary}" for name, (_, summary) in SUBCOMMANDS.items())
    return f"usage: whispercore SUBCOMMAND …   (options: whispercore SUBCOMMAND --help)\n\nsubcommands:\n{rows}"
