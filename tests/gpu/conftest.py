"""The fixtures of engine torch's unit tests: the bundled model, its reference and recordings."""

from tests.unit.engines.torch.conftest import nano, recordings, reference

__all__ = ["nano", "recordings", "reference"]
