"""Whisper as a core: bytes of any recording in, segments out, windows of every open request sharing one device."""

__version__ = "0.1.0"
