"""Lines for the user."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Print one line. It goes to standard error, because standard output carries TorchServe's log."""
    print(f"serve.sh: {line}", file=sys.stderr, flush=True)
