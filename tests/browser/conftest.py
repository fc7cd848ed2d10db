"""Debian's Chromium, driven by playwright, on a real gateway. Every test here has the markers `serve` and `slow`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
import soundfile

from tests.browser.gateway import Gateway, running_gateway
from tests.serve.recordings import SAMPLES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = Path(__file__).parent
WAIT_MS = 60_000
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


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
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the browser's microphone hears: a sample, again and again, with silence between."""
    with av.open(str(SAMPLES / "timer.flac")) as container:
        resampler = av.AudioResampler("s16", "mono", 48_000)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    with soundfile.SoundFile(path, "w", 48_000, 1, "PCM_16") as file:
        for frame in frames:
            file.write(frame.to_ndarray().reshape(-1))
        file.write([0.0] * 48_000 * 2)
    return path


@pytest.fixture(scope="module")
def browser(microphone: Path) -> Iterator[Browser]:
    """Chromium. It ends with the module: while playwright runs, no other test of the process can use asyncio.run."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("chromium is not installed (apt install chromium): the page is not tested in a browser")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tested in a browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",  # containers give no namespaces
                "--autoplay-policy=no-user-gesture-required",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, gateway: Gateway) -> Iterator[Callable[..., Page]]:
    """Opens the page in a fresh profile: `open_page(url, **options)` with playwright's options of a context.

    At the end of the test there must have been no uncaught error and no violation of the Content-Security-Policy.
    """
    pages: list[Page] = []
    errors: list[str] = []

    def open_page(url: str = gateway.url, **options: Any) -> Page:
        context = browser.new_context(permissions=["microphone", "clipboard-read", "clipboard-write"], **options)
        context.set_default_timeout(WAIT_MS)
        context.add_init_script(VIOLATIONS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    violations = [found for page in pages if not page.is_closed() for found in page.evaluate("window.violations ?? []")]
    for page in pages:
        page.unroute_all(behavior="ignoreErrors")
        page.context.close()
    assert (errors, violations) == ([], [])


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """The page of the gateway."""
    return open_page()
