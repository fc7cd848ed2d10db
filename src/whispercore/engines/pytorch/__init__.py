"""Whisper's forward passes in PyTorch. Engine torch decodes with them; engine ct2 encodes and decodes with them on CPUs."""
