"""Decoded windows → a transcript: decoding strategies, segments, word times, guards against hallucinations."""
