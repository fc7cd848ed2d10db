"""Decoded windows → a transcript: decoding strategies, word and segment times, and guards against hallucinated text."""
