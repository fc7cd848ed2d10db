"""Which engine is loaded, and what happens when the one for the GPU does not work there. No GPU is needed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from whispercore import engines
from whispercore.engines import load_engine
from whispercore.engines.fake import FakeEngine
from whispercore.errors import ConfigurationError, OutOfMemory
from whispercore.settings import Settings
from whispercore.types import Decoded, Window


class Broken(FakeEngine):
    """Fails with more than one window."""

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        if len(windows) > 1:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return super().decode(windows)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeEngine | Exception]:
    """What each name loads, on a machine that says it has a GPU."""
    by_name: dict[str, FakeEngine | Exception] = {"torch": FakeEngine(), "openai": FakeEngine()}

    def load(name: str, settings: Settings, device: str) -> FakeEngine:
        found = by_name[name]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(engines, "choose_device", lambda settings: "cuda")
    monkeypatch.setattr(engines, "_load", load)
    return by_name


def test_the_engine_for_the_gpu_is_tried_before_it_is_taken(loaded: dict[str, FakeEngine]) -> None:
    assert load_engine(Settings()) is loaded["torch"]
    assert loaded["torch"].batches == [1, 4]


@pytest.mark.parametrize("trouble", [Broken(), RuntimeError("no kernel image is available")])
def test_where_it_fails_openais_own_code_serves(loaded: dict[str, FakeEngine | Exception], trouble: FakeEngine | Exception) -> None:
    loaded["torch"] = trouble
    assert load_engine(Settings()) is loaded["openai"]
    assert isinstance(trouble, Exception) or trouble.closed


def test_what_is_asked_for_by_name_is_not_replaced(loaded: dict[str, FakeEngine | Exception]) -> None:
    loaded["torch"] = Broken()
    assert load_engine(Settings(engine="torch")) is loaded["torch"]
    loaded["torch"] = ConfigurationError("engine 'torch' on cuda computes in float16, not in int8", param="dtype")
    with pytest.raises(ConfigurationError, match="int8"):
        load_engine(Settings(dtype="int8"))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"), OutOfMemory("no memory to decode on")]
)
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_model_too_large_for_the_machine_is_one_clear_line(
    loaded: dict[str, FakeEngine | Exception], error: Exception, engine: str
) -> None:
    loaded["torch"] = loaded["openai"] = error
    with pytest.raises(
        ConfigurationError, match=r"^'large-v3' does not fit into the memory \(.+\): choose a smaller model, dtype or batch_size$"
    ):
        load_engine(Settings(model="large-v3", engine=engine))
