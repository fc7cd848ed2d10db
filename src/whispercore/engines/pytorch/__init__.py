"""Whisper's forward passes in PyTorch. Engine torch decodes with them; engine ct2 encodes with them on CPUs that multiply bfloat16."""
