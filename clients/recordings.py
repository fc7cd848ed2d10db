"""The recordings that the arguments name, and the files that their transcripts are saved to."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from failures import RequestFailed

EXTENSIONS = {"text": "txt", "json": "json", "verbose_json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv"}
"""The extension of a transcript's file in each format."""
AUDIO_SUFFIXES = (
    *(".aac", ".aif", ".aiff", ".amr", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mp3", ".mpga", ".oga", ".ogg", ".opus", ".wav", ".wma"),
    *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".webm", ".wmv"),
)


def find_files(arguments: Iterable[str]) -> list[Path]:
    """The recordings named by files, folders (searched recursively) and patterns. Raises FileNotFoundError."""
    files: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            matches = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not matches:
            raise FileNotFoundError(f"no recordings in {argument}" if path.is_dir() else f"no such file: {argument}")
        files += matches
    return files


def output_paths(files: Sequence[Path], folder: Path, extension: str) -> list[Path]:
    """The path of each transcript: talk.txt, or talk.mp3.txt when talk.wav is sent too.

    Raises ValueError on a clash.
    """
    stems = [path.stem for path in files]
    outputs = [folder / f"{path.stem if stems.count(path.stem) == 1 else path.name}.{extension}" for path in files]
    clash = next((path for path in outputs if outputs.count(path) > 1), None)
    if clash:
        raise ValueError(f"two recordings would be written to {clash}: send them one by one")
    return outputs


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """The file itself; for a pipe, a temporary file with its content. Raises RequestFailed."""
    if path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="whisper-upload-") as folder:
        copy = Path(folder) / path.name
        try:
            with path.open("rb") as source, copy.open("wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
        except OSError as error:
            raise RequestFailed("unreadable file", f"cannot read it: {error.strerror}") from None
        yield copy
