#!/usr/bin/env python3
"""Download the sound of a video or podcast page in its original container.

The server reads m4a and webm, so ffmpeg is not needed.

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
    """The download failed. The message says what to do."""


def download(url: str, folder: Path, *, playlist: bool = False, quiet: bool = False) -> list[Path]:
    """The downloaded files of `url`: one, or with `playlist` all of a list. Raises DownloadFailed."""
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
        "fixup": "never",  # the only step that needs ffmpeg
        "quiet": True,
        "noprogress": quiet,
        "no_warnings": True,
        "logger": _Silent(),
        "color": "never",
    }
    try:
        with yt_dlp.YoutubeDL(settings) as downloader:
            info = downloader.extract_info(url, download=True)
    except yt_dlp.utils.YoutubeDLError as error:
        raise DownloadFailed(_reason(url, str(error))) from None
    files = list(_files(info or {}))
    if not files:
        raise DownloadFailed(f"nothing to download at {url}")
    return files


class _Silent:
    """Discards yt-dlp's log. Its errors are raised as exceptions too and would be shown twice."""

    def debug(self, message: str) -> None:
        """Discard the message."""

    warning = error = debug


def _files(info: dict[str, Any]) -> Iterator[Path]:
    for entry in info.get("entries") or [info]:
        for item in (entry or {}).get("requested_downloads") or []:
            yield Path(item["filepath"])


def _reason(url: str, message: str) -> str:
    """yt-dlp's message in one line, with advice."""
    reason = message.removeprefix("ERROR: ").split("; please report")[0].split(" (caused by")[0]
    if "Unsupported URL" in reason or "is not a valid URL" in reason:
        return f"no audio found at {url}: yt-dlp does not know such a page (yt-dlp --list-extractors lists those it knows)"
    return (
        f"{url}: {' '.join(reason.split())} (sites change often: a newer yt-dlp may help, {sys.executable} -m pip install --upgrade yt-dlp)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the names of the downloaded files, one per line. Exit status: 0 all downloaded, 1 some failed."""
    parser = argparse.ArgumentParser(description="Download the sound of a video or podcast page in its original container.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIR", help="default: the current folder")
    parser.add_argument("--playlist", action="store_true", help="download all recordings of a list, a channel or a feed")
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
