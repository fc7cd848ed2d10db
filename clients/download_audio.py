#!/usr/bin/env python3
"""Fetch the sound of a video or podcast page, in its own container: the server reads m4a and webm, so no ffmpeg is
needed.

python3 clients/download_audio.py https://… --output-dir podcasts
python3 clients/transcribe.py podcasts/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import environment

environment.enter()


class DownloadFailed(Exception):
    """The message says what to do."""


def download(url: str, folder: Path, *, playlist: bool = False, quiet: bool = False) -> list[Path]:
    """The files that `url` was saved to: one, or with `playlist` all of a list's. Raises DownloadFailed."""
    try:
        import yt_dlp
    except ImportError:
        raise DownloadFailed(
            "yt-dlp is not installed: run ./serve.sh --setup once, or in a virtual environment: pip install yt-dlp"
        ) from None
    settings = {
        "format": "bestaudio/best",
        "paths": {"home": str(folder)},
        "outtmpl": "%(title).100B [%(id)s].%(ext)s",
        "noplaylist": not playlist,
        "fixup": "never",  # the only step that would want ffmpeg
        "quiet": True,
        "noprogress": quiet,
        "no_warnings": True,
        "logger": _Silent(),
        "color": "never",
    }
    try:
        with yt_dlp.YoutubeDL(settings) as downloader:
            found = downloader.extract_info(url, download=True)
    except yt_dlp.utils.YoutubeDLError as error:
        raise DownloadFailed(_reason(url, str(error))) from None
    files = list(_files(found or {}))
    if not files:
        raise DownloadFailed(f"nothing to download at {url}")
    return files


class _Silent:
    """Takes yt-dlp's log. Its errors come as exceptions too, and would be shown twice."""

    def debug(self, message: str) -> None:
        """Show nothing."""

    warning = error = debug


def _files(found: dict[str, Any]) -> Iterator[Path]:
    for entry in found.get("entries") or [found]:
        for item in (entry or {}).get("requested_downloads") or []:
            yield Path(item["filepath"])


def _reason(url: str, message: str) -> str:
    """yt-dlp's message in one line, with what to do."""
    reason = message.removeprefix("ERROR: ").split("; please report")[0].split(" (caused by")[0]
    if "Unsupported URL" in reason or "is not a valid URL" in reason:
        return f"no audio found at {url}: yt-dlp does not know such a page (yt-dlp --list-extractors lists those it knows)"
    return (
        f"{url}: {' '.join(reason.split())} (sites change often: a newer yt-dlp may help, {sys.executable} -m pip install --upgrade yt-dlp)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all fetched, 1 some failed. Prints the files' names, one a line."""
    parser = argparse.ArgumentParser(description="Fetch the sound of a video or podcast page, in its own container.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR", help="default: the current folder")
    parser.add_argument("--playlist", action="store_true", help="fetch every recording of a list, a channel or a feed")
    arguments = parser.parse_args(argv)
    failed = 0
    for url in arguments.urls:
        try:
            for path in download(url, arguments.output_dir, playlist=arguments.playlist, quiet=not sys.stderr.isatty()):
                print(path)
        except DownloadFailed as error:
            print(f"download_audio.py: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(environment.run(main))
