"""download_model.py against a local server, OpenAI's or a Hub, that cuts connections, ignores ranges, and serves wrong bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
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
from download_model import DownloadFailed, Sources, download, main  # noqa: E402

CONTENT = bytes(range(256)) * 20_000


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`, by path, else `server.content`; what it does wrong is set on the server."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append((self.path, self.headers.get("Range")))
        content = server.files.get(self.path, server.content)
        if content is None:
            self.send_error(404)
            return
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if server.ignores_range:
            start = 0
        elif start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
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
    server.files = {}
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
    return lambda: download("tiny", tmp_path / "models", Sources(server.url, pause=0.0), quiet=True)


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
        download("tiny", tmp_path, Sources("http://127.0.0.1:9", pause=0.0), quiet=True)


@pytest.mark.parametrize("address", ["mirror.example/whisper", "ftp://mirror.example"])
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(DownloadFailed, match=r"^tiny\.pt cannot be fetched: .*; is the server's address right\?$"):
        download("tiny", tmp_path, Sources(address, pause=0.0), quiet=True)


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
    with pytest.raises(DownloadFailed, match=r"cannot write .*tiny\.pt: No space left on device"):
        fetch()


def test_the_command(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_DOWNLOAD_URL", server.url)
    assert main(["tiny", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tiny.pt'}\n"
    assert main(["huge", "--dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: unknown model 'huge'; known: ")
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "turbo = large-v3-turbo" in listed and listed[-1] == "distil-large-v3.5 = distil-whisper/distil-large-v3.5-ct2"


def test_what_is_there_is_verified_without_a_server(
    fetch: Callable[[], Path], server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    assert main(["tiny", "--verify", "--dir", str(models)]) == 1
    assert capsys.readouterr().err == f"error: {models / 'tiny.pt'} is not there; get it: the same command without --verify\n"
    path = fetch()
    server.seen.clear()
    assert main(["tiny", "--verify", "--dir", str(models)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    path.write_bytes(CONTENT[:-1])
    assert main(["tiny", "--verify", "--dir", str(models)]) == 1
    assert "is not the published file" in capsys.readouterr().err
    assert server.seen == [] and path.exists()


def test_the_repositories_are_faster_whispers() -> None:
    from faster_whisper.utils import _MODELS

    names = {name: download_model.ALIASES.get(name, name) for name in _MODELS}
    assert {name: download_model.REPOSITORIES[known] for name, known in names.items()} == _MODELS
    assert set(download_model.REPOSITORIES) == set(names.values())


REPOSITORY, REVISION = "Systran/faster-distil-whisper-small.en", "0123456789abcdef0123456789abcdef01234567"
CONVERTED = {
    "model.bin": CONTENT,
    "config.json": b'{"alignment_heads": [[0, 0]]}',
    "tokenizer.json": b"{}",
    "vocabulary.txt": b"a\nb\n",
    "preprocessor_config.json": b"{}",
    "README.md": b"# not needed",
    ".gitattributes": b"*.bin filter=lfs",
    "onnx/decoder_model.onnx": b"of another kind",
}


def hub(server: Any, files: dict[str, bytes], repository: str = REPOSITORY) -> Sources:
    """Let the server be a Hub with one repository, whose large files are stored by Git LFS."""
    siblings: list[dict[str, Any]] = []
    for name, content in files.items():
        large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 133}
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        siblings.append({"rfilename": name, "size": len(content), "blobId": blob, **({"lfs": large} if len(content) > 1000 else {})})
    address = f"http://127.0.0.1:{server.server_port}"
    listing = json.dumps({"id": repository, "sha": REVISION, "siblings": siblings}).encode()
    server.files = {f"/{repository}/resolve/{REVISION}/{name}": content for name, content in files.items()}
    server.files[f"/api/models/{repository}/revision/main?blobs=true"] = listing
    server.content = None
    return Sources(server.url, address, pause=0.0)


def fetched(server: Any) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in server.seen if "/resolve/" in path]


def test_a_name_of_faster_whispers_is_its_folder(server: Any, tmp_path: Path) -> None:
    sources = hub(server, CONVERTED)
    path = download("distil-small.en", tmp_path, sources, quiet=True)
    assert path == tmp_path / REPOSITORY
    wanted = {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt", "preprocessor_config.json"}
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != "SHA256SUMS"} == {
        name: CONVERTED[name] for name in wanted
    }
    assert sorted(path.parent.iterdir()) == [path]
    server.seen.clear()
    assert download("distil-small.en", tmp_path, Sources(), quiet=True) == path
    assert server.seen == []
    check = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=path, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr


def test_a_folder_is_found_where_it_was_put(server: Any, tmp_path: Path) -> None:
    from whispercore.checkpoints.locations import locate
    from whispercore.settings import Settings

    path = download("distil-small.en", tmp_path, hub(server, CONVERTED), quiet=True)
    for name in ("distil-small.en", REPOSITORY):
        assert locate(Settings(model=name, models_dir=str(tmp_path))) == path


def test_openais_names_are_converted_ones_when_asked_for(server: Any, tmp_path: Path) -> None:
    sources = hub(server, CONVERTED, "mobiuslabsgmbh/faster-whisper-large-v3-turbo")
    assert download("turbo", tmp_path, sources, ct2=True, quiet=True) == tmp_path / "mobiuslabsgmbh" / "faster-whisper-large-v3-turbo"
    with pytest.raises(DownloadFailed, match="unknown model 'huge'"):
        download("huge", tmp_path, sources, ct2=True, quiet=True)


def test_a_repository_of_safetensors(server: Any, tmp_path: Path) -> None:
    parts = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 5000 for i in (1, 2)}
    config = {"config.json": b"{}", "generation_config.json": b"{}", "model.safetensors.index.json": b"{}", "vocab.json": b"{}"}
    others = {"pytorch_model.bin": CONTENT, "model.safetensors.index.fp32.json": b"{}", "model.fp32-00001-of-00002.safetensors": CONTENT}
    path = download("someone/tuned", tmp_path, hub(server, parts | config | others, "someone/tuned"), quiet=True)
    assert {file.name for file in path.iterdir()} == {*parts, *config, "SHA256SUMS"}
    whole = {"model.safetensors": CONTENT, "model.bin": CONTENT}
    path = download("someone/whole", tmp_path, hub(server, parts | config | whole, "someone/whole"), quiet=True)
    assert {file.name for file in path.iterdir()} == {"model.safetensors", *config, "SHA256SUMS"} - {"model.safetensors.index.json"}
    with pytest.raises(DownloadFailed, match="neither safetensors nor a CTranslate2"):
        download("someone/pickled", tmp_path, hub(server, config | {"pytorch_model.bin": CONTENT}, "someone/pickled"), quiet=True)


def test_a_repository_cut_short_is_continued_by_a_later_run(server: Any, tmp_path: Path) -> None:
    sources = hub(server, CONVERTED)
    server.cuts = [None, 1_000_000] + [0] * 4
    with pytest.raises(DownloadFailed, match="run the same command again to continue"):
        download("distil-small.en", tmp_path, sources, quiet=True)
    assert not (tmp_path / REPOSITORY).exists()
    server.seen.clear()
    assert (download("distil-small.en", tmp_path, sources, quiet=True) / "model.bin").read_bytes() == CONTENT
    (asked,) = [asked for path, asked in server.seen if path.endswith("model.bin")]
    assert 1_000_000 - download_model.BLOCK < int(asked[6:-1]) <= 1_000_000


def test_what_has_arrived_is_not_fetched_again(server: Any, tmp_path: Path) -> None:
    sources = hub(server, CONVERTED)
    config = f"/{REPOSITORY}/resolve/{REVISION}/config.json"
    right, server.files[config] = server.files[config], None
    with pytest.raises(DownloadFailed, match=r"config\.json: the server answers 404"):
        download("distil-small.en", tmp_path, sources, quiet=True)
    server.files[config] = right
    server.seen.clear()
    download("distil-small.en", tmp_path, sources, quiet=True)
    assert "model.bin" not in fetched(server) and "config.json" in fetched(server)


@pytest.mark.parametrize("file", ["model.bin", "config.json"])
def test_damaged_files_of_a_repository_are_told(server: Any, tmp_path: Path, file: str) -> None:
    sources = hub(server, CONVERTED)
    path = f"/{REPOSITORY}/resolve/{REVISION}/{file}"
    server.files[path] = b"x" + server.files[path][1:]
    with pytest.raises(DownloadFailed, match=rf"{file} arrived damaged"):
        download("distil-small.en", tmp_path, sources, quiet=True)
    assert not (tmp_path / REPOSITORY).exists()


def test_a_folder_is_verified_by_what_was_fetched(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["distil-small.en", "--dir", str(tmp_path), "--hub", hub(server, CONVERTED).hub]
    assert main(command) == 0
    assert main([*command, "--verify"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / REPOSITORY}\n" * 2
    (tmp_path / REPOSITORY / "tokenizer.json").write_bytes(b"[]")
    assert main([*command, "--verify"]) == 1
    assert "tokenizer.json exists and is not the published file" in capsys.readouterr().err
    (tmp_path / REPOSITORY / "tokenizer.json").unlink()
    assert main(command) == 1
    assert "tokenizer.json is missing" in capsys.readouterr().err
    (tmp_path / REPOSITORY / "SHA256SUMS").unlink()
    assert main(command) == 1
    assert "was not fetched by this command" in capsys.readouterr().err


def test_the_hub_need_not_know_the_name_or_be_one(server: Any, tmp_path: Path) -> None:
    sources = hub(server, CONVERTED)
    with pytest.raises(DownloadFailed, match=r"the server answers 404 .*is the name right"):
        download("some/other", tmp_path, sources, quiet=True)
    for status, told in ((401, "needs its terms accepted there, and HF_TOKEN"), (503, "the server answers 503")):
        server.statuses = [status]
        with pytest.raises(DownloadFailed, match=told):
            download(REPOSITORY, tmp_path, sources, quiet=True)
    server.files[f"/api/models/{REPOSITORY}/revision/main?blobs=true"] = b"<html>"
    with pytest.raises(DownloadFailed, match="does not answer as the Hub does"):
        download(REPOSITORY, tmp_path, sources, quiet=True)
    with pytest.raises(DownloadFailed, match="no connection: check the network"):
        download(REPOSITORY, tmp_path, Sources(hub="http://127.0.0.1:9"), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_the_hubs_own_client_tells_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://mirror.example/")
    assert download_model._hub("") == ("http://mirror.example", {"Authorization": "Bearer hf_secret"})
    assert download_model._hub("http://127.0.0.1:1/")[0] == "http://127.0.0.1:1"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadFailed, match="pip install huggingface_hub"):
        download_model._hub("")


def test_it_runs_as_a_script() -> None:
    run = subprocess.run([sys.executable, CLIENTS / "download_model.py"], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "--list shows the names" in run.stderr
