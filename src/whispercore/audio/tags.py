"""Tags of audio files, found before FFmpeg sees them.

Nothing here needs the tags, and FFmpeg's time is quadratic in their number. An ID3v2 tag in front of a file is skipped.
FLAC and Ogg files keep their tags in one block that FFmpeg parses in a single call, which cannot be interrupted, so a
file with too many is refused. Everything else is read in small pieces and limited by `ReadingBudget`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..errors import UnreadableAudio

MAX_COMMENTS = 5_000
"""Vorbis comments of a file, at most. FFmpeg takes 0.1 s of processor time for 5,000, and 2 s for 20,000."""
_ID3_HEADER, _FLAC_VORBIS_COMMENT, _OGG_HEADER = 10, 4, 27
_COMMENT_PREFIXES = {b"\x03vorbis": 7, b"OpusTags": 8, b"\x81theora": 7}
_UNNAMED_PREFIXES = (0, 4)
"""Of Speex, and of FLAC in Ogg, whose comments begin without a name."""
_HEAD_BYTES = 64 * 1024
"""How much of a comment packet is read here: the vendor's name and the number of comments come first."""


class TagSource(Protocol):
    """A file whose tags are looked for."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes."""
        ...

    def seek(self, offset: int, /) -> int:
        """Go to a position, counted from the beginning."""
        ...


def id3_length(file: TagSource) -> int:
    """Bytes of the ID3v2 tags at the file's beginning, 0 when there are none.

    Several may follow each other (id3.org, ID3v2.4, 3.1).
    """
    end = 0
    while True:
        file.seek(end)
        header = file.read(_ID3_HEADER)
        if len(header) < _ID3_HEADER or header[:3] != b"ID3" or max(header[6:10]) > 127:
            return end
        footer = _ID3_HEADER if header[5] & 0x10 else 0
        end += _ID3_HEADER + sum(byte << shift for byte, shift in zip(header[6:10], (21, 14, 7, 0), strict=True)) + footer


def check_comments(file: TagSource, begin: int) -> None:
    """Raise UnreadableAudio when a FLAC or Ogg file has more than `MAX_COMMENTS` comments. `begin`: its first byte."""
    file.seek(begin)
    signature = file.read(4)
    counts = {b"fLaC": _flac_counts, b"OggS": _ogg_counts}.get(signature)
    if counts and sum(counts(file, begin)) > MAX_COMMENTS:
        raise UnreadableAudio(
            f"the file has more than {MAX_COMMENTS} tags: remove them (ffmpeg -i FILE -map_metadata -1 -c copy OUT) and send it again"
        )


def _flac_counts(file: TagSource, begin: int) -> Iterator[int]:
    """The number of comments in each comment block of a FLAC file (RFC 9639, 8.6)."""
    place, last = begin + 4, False
    while not last:
        file.seek(place)
        header = file.read(4)
        if len(header) < 4:
            return
        last, kind, length = bool(header[0] & 0x80), header[0] & 0x7F, int.from_bytes(header[1:4], "big")
        if kind == _FLAC_VORBIS_COMMENT:
            yield _comment_count(file.read(min(length, _HEAD_BYTES)), 0, length)
        place += 4 + length


def _ogg_counts(file: TagSource, begin: int) -> Iterator[int]:
    """The number of comments of each logical stream of an Ogg file: its second packet holds them (RFC 3533)."""
    packets: dict[bytes, int] = {}
    comments: dict[bytes, tuple[bytearray, int]] = {}
    place = begin
    while True:
        file.seek(place)
        header = file.read(_OGG_HEADER)
        if len(header) < _OGG_HEADER or header[:4] != b"OggS":
            break
        lacing, serial = file.read(header[26]), header[14:18]
        body = place + _OGG_HEADER + len(lacing)
        if header[5] & 2:  # the first page of a stream
            packets[serial] = 0
        if packets.get(serial, 2) < 2:
            offset = body
            for size in lacing:
                if packets[serial] == 1:
                    head, total = comments.get(serial, (bytearray(), 0))
                    if len(head) < _HEAD_BYTES:
                        file.seek(offset)
                        head += file.read(size)
                    comments[serial] = head, total + size
                offset += size
                if size < 255:
                    packets[serial] += 1
                    if packets[serial] == 2 and serial in comments:
                        yield _named_comment_count(*comments.pop(serial))
        place = body + sum(lacing)
    for head, total in comments.values():  # cut off within its comments
        yield _named_comment_count(head, total)


def _named_comment_count(head: bytes | bytearray, length: int) -> int:
    for name, prefix in _COMMENT_PREFIXES.items():
        if head.startswith(name):
            return _comment_count(head, prefix, length)
    return max(_comment_count(head, prefix, length) for prefix in _UNNAMED_PREFIXES)


def _comment_count(head: bytes | bytearray, prefix: int, length: int) -> int:
    """The number of comments that a comment header declares, 0 when it cannot hold as many.

    `head`: its first bytes. `prefix`: bytes before the vendor's name. `length`: bytes in all. When the vendor's name is
    longer than `head`, the number is unknown, and the most that fit are counted.
    """
    vendor = int.from_bytes(head[prefix : prefix + 4], "little")
    place = prefix + 4 + vendor
    room = max(0, length - place - 4) // 4
    if place + 4 > len(head):
        return room
    return min(room, int.from_bytes(head[place : place + 4], "little"))
