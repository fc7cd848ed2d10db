"""A file or a folder that appears complete or not at all: it is made beside its place, and moved there when it is done."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigurationError


@contextmanager
def staged(target: Path, complete: str = "") -> Iterator[Path]:
    """A path to write to, which nothing is at yet; after the block it is `target`. When the block raises, nothing is left of it.

    `complete`: a file in a folder that another process may have finished first, which is as good. Raises ConfigurationError when
    the target cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
            made = Path(temporary) / target.name
            yield made
            _move(made, target, complete)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error}", param="converted_dir") from error


def _move(made: Path, target: Path, complete: str) -> None:
    try:
        made.rename(target)
    except OSError:
        if complete and (target / complete).is_file():
            return
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
