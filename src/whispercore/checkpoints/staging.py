"""Files and folders that appear complete or not at all: each is written in a temporary folder beside its target, then
moved."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigurationError


@contextmanager
def staged(target: Path, complete: str = "") -> Iterator[Path]:
    """Yields an unused path to write to. After the block it is moved to `target`; when the block raises, it is deleted.

    `complete`: if another process has made the target folder in the meantime and this file is in it, that folder is
    kept. Raises ConfigurationError when the target cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
            path = Path(temporary) / target.name
            yield path
            _move(path, target, complete)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error}", param="converted_dir") from error


def _move(path: Path, target: Path, complete: str) -> None:
    try:
        path.rename(target)
    except OSError:
        if complete and (target / complete).is_file():
            return
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
