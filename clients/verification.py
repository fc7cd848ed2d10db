"""Verifies downloaded checkpoints by the hashes that are known of them, and writes the list of hashes of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from catalogue import SHA256, WHEELS
from rich.progress import Progress
from transfer import Blocked, digest

SUMS = "SHA256SUMS"
"""The file of hashes in a downloaded folder, in the format of sha256sum."""


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the SHA-256 of each file into the folder's SHA256SUMS."""
    (folder / SUMS).write_text("".join(f"{digest}  {file}\n" for file, digest in sums.items()))


def verify(target: Path, name: str, progress: Progress) -> None:
    """Compare an existing checkpoint with its known hashes. Raises Blocked if it differs; the user's files are kept."""
    if target.is_dir() and not (target / SUMS).is_file() and name in WHEELS:
        return _verify_wheels(target, name, progress)
    expected_hashes = {target: SHA256[name]} if target.is_file() and name in SHA256 else _sums(target)
    for path, expected in expected_hashes.items():
        if not path.is_file():
            raise Blocked(f"{path} is missing: move {target} away, and fetch it again")
        if digest(path, expected, progress) != expected:
            raise Blocked(f"{path} exists and is not the published file of that name: move it away, or use --dir")


def _verify_wheels(target: Path, name: str, progress: Progress) -> None:
    """`verify` for a folder without SHA256SUMS, unpacked by hand: it must equal a published copy."""
    for copy in WHEELS[name]:
        if all((target / file).is_file() and digest(target / file, "", progress) == known for file, (_, known) in copy.files.items()):
            return
    raise Blocked(f"{target} exists and is not the published model of that name: move it away, or use --dir")


def _sums(folder: Path) -> dict[Path, str]:
    """The hashes in the folder's SHA256SUMS, by path."""
    sums = folder / SUMS
    if not sums.is_file():
        raise Blocked(f"{folder} exists and was not fetched by this command, it has no {SUMS}: move it away, or use --dir")
    lines = (line.partition("  ") for line in sums.read_text().splitlines())
    return {folder / file: digest for digest, _, file in lines}
