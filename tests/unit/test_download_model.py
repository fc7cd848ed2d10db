"""download_model.py against a local server that cuts connections, ignores ranges, and serves wrong bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import whisper

CLIENTS = Path(__file__).resolve().parents[2] / "clients"
sys.path.insert(0, str(CLIENTS))

import download_model  # noqa: E402
from download_model import DownloadFailed, download, main  # noqa: E402

CONTENT = bytes(range(256)) * 20_000


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`; what it does wrong is set on the server."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append((self.path, self.headers.get("Range")))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if server.ignores_range:
            start = 0
        elif start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        with contextlib.suppress(ConnectionError):  # a client that has seen enough hangs up
            self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.seen, server.cuts, server.statuses, server.ignores_range = CONTENT, [], [], [], False
    server.url = f"http://127.0.0.1:{server.server_port}/models"
    monkeypatch.setitem(download_model.SHA256, "tiny", hashlib.sha256(CONTENT).hexdigest())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(server: Any, tmp_path: Path) -> Callable[[], Path]:
    return lambda: download("tiny", tmp_path / "models", base_url=server.url, pause=0.0, quiet=True)


def test_the_table_is_openais() -> None:
    for name, url in whisper._MODELS.items():
        known = download_model.ALIASES.get(name, name)
        assert f"{download_model.BASE_URL}/{download_model.SHA256[known]}/{known}.pt" == url
    assert {*download_model.SHA256, *download_model.ALIASES} == set(whisper.available_models())


def test_a_checkpoint_is_fetched_once(server: Any, fetch: Callable[[], Path]) -> None:
    path = fetch()
    assert path.read_bytes() == CONTENT
    assert server.seen == [(f"/models/{download_model.SHA256['tiny']}/tiny.pt", None)]
    assert [file.name for file in path.parent.iterdir()] == ["tiny.pt"]
    assert fetch() == path
    assert len(server.seen) == 1


def test_a_cut_connection_is_continued(server: Any, fetch: Callable[[], Path]) -> None:
    server.cuts = [1_000_000, 2_000_000]
    assert fetch().read_bytes() == CONTENT
    starts = [int(asked[6:-1]) for _, asked in server.seen[1:]]
    assert len(starts) == 2
    assert 1_000_000 - download_model.BLOCK < starts[0] <= 1_000_000
    assert 2_000_000 - download_model.BLOCK < starts[1] - starts[0] <= 2_000_000


def test_a_later_run_continues(server: Any, fetch: Callable[[], Path], tmp_path: Path) -> None:
    server.cuts = [500_000] + [0] * 4
    with pytest.raises(DownloadFailed, match="run the same command again to continue"):
        fetch()
    have = (tmp_path / "models" / "tiny.pt.part").stat().st_size
    assert 500_000 - download_model.BLOCK < have <= 500_000
    assert not (tmp_path / "models" / "tiny.pt").exists()
    assert fetch().read_bytes() == CONTENT
    assert server.seen[-1][1] == f"bytes={have}-"


def test_a_server_that_ignores_ranges_starts_again(server: Any, fetch: Callable[[], Path]) -> None:
    server.cuts, server.ignores_range = [1_000_000], True
    assert fetch().read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_a_whole_part_needs_its_name_only(server: Any, fetch: Callable[[], Path], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.pt.part").write_bytes(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.seen == [(server.seen[0][0], f"bytes={len(CONTENT)}-")]


def test_damaged_bytes_are_deleted_and_told(server: Any, fetch: Callable[[], Path], tmp_path: Path) -> None:
    server.content = b"x" + CONTENT[1:]
    with pytest.raises(DownloadFailed, match=r"arrived damaged .* and was deleted"):
        fetch()
    assert list((tmp_path / "models").iterdir()) == []
    server.content = CONTENT
    assert fetch().read_bytes() == CONTENT


def test_a_file_of_the_users_own_stays(server: Any, fetch: Callable[[], Path], tmp_path: Path) -> None:
    own = tmp_path / "models" / "tiny.pt"
    own.parent.mkdir()
    own.write_bytes(b"my own")
    with pytest.raises(DownloadFailed, match="move it away, or use --dir"):
        fetch()
    assert own.read_bytes() == b"my own"
    assert server.seen == []


def test_a_busy_server_is_asked_again_a_missing_file_is_not(server: Any, fetch: Callable[[], Path]) -> None:
    server.statuses = [503, 429]
    assert fetch().read_bytes() == CONTENT
    fetch().unlink()
    server.statuses, server.seen = [404], []
    with pytest.raises(DownloadFailed, match="the server answers 404"):
        fetch()
    assert len(server.seen) == 1


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="no connection: check the network"):
        download("tiny", tmp_path, base_url="http://127.0.0.1:9", pause=0.0, quiet=True)


def test_an_unknown_name_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"unknown model 'huge'; known: tiny\.en, tiny, .*turbo"):
        download("huge", tmp_path, quiet=True)


def test_too_little_disk_is_told_before_it_is_full(fetch: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_model.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadFailed, match=r"0\.0 GB free, 0\.0 GB are needed"):
        fetch()


def test_a_disk_that_fills_up(fetch: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download_model, "_write", full)
    with pytest.raises(DownloadFailed, match=r"cannot write .*tiny\.pt\.part: No space left on device"):
        fetch()


def test_the_command(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_DOWNLOAD_URL", server.url)
    assert main(["tiny", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tiny.pt'}\n"
    assert main(["huge", "--dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: unknown model 'huge'; known: ")
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "turbo = large-v3-turbo"


def test_it_runs_as_a_script() -> None:
    run = subprocess.run([sys.executable, CLIENTS / "download_model.py"], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "--list shows the names" in run.stderr
