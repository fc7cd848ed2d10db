"""The Gradio app before a real gateway. Every test here has the markers `serve` and `slow`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.gateway import Gateway, running_gateway
from tests.deploy.gradio.app import running_app

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; pytest calls the hook with all tests of the run."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.serve)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway of most tests. It asks for no key."""
    with running_gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def app(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the app of most tests."""
    with running_app(gateway.url, tmp_path_factory.mktemp("app") / "log") as address:
        yield address
