"""The archive in AWS's own toolkits: sagemaker-pytorch-inference on TorchServe, and Hugging Face's on multi-model-server.

Both are the packages that AWS's images run. They listen on every interface, on port 8080, and write into /etc; so each
runs in a sandbox of its own, without a network.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import pytest

from deploy.sagemaker.deployment import Deployment
from deploy.sagemaker.invocation import content_type
from deploy.sagemaker.model_archive import ROOT, Form, build
from tests.deploy.sagemaker.account import BUCKET, IMAGE, NAME, REGION, ROLE

pytestmark = [pytest.mark.serve, pytest.mark.slow]
# pkg_resources, which the toolkits import, left setuptools with 81; transformers.file_utils left transformers with 5.
PACKAGES = ("setuptools<81", "wheel", "torchserve==0.12.0", "torch-model-archiver==0.12.0", "transformers>=4.48,<5", "future")
TOOLKITS = ("sagemaker-pytorch-inference==2.0.25", "sagemaker-inference==1.10.1")
# Without what they require: the second wants librosa and more for tasks that are not used here.
ALONE = ("sagemaker-huggingface-inference-toolkit==2.6.0", "multi-model-server==1.1.11", "model-archiver==1.0.3")
MODULES: dict[Form, str] = {
    "pytorch": "sagemaker_pytorch_serving_container.serving",
    "huggingface": "sagemaker_huggingface_inference_toolkit.serving",
}
SOUND = ROOT / "samples" / "timer.flac"
WORDS = "Set a timer for five minutes."


@pytest.fixture(scope="session")
def toolkits() -> Path:
    """An environment with the toolkits, which has the tests' packages too; made once in the state folder."""
    environment = Path(os.environ.get("WHISPER_STATE_DIR") or ROOT / "build") / "sagemaker-venv"
    stamp, wanted = environment / ".packages", "\n".join((*PACKAGES, *TOOLKITS, *ALONE, sys.prefix))
    if stamp.is_file() and stamp.read_text() == wanted:
        return environment
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    for arguments in ([*PACKAGES], ["--no-build-isolation", *TOOLKITS], ["--no-build-isolation", "--no-deps", *ALONE]):
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"AWS's toolkits cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    # What the core needs comes from the tests' environment. Last, because pip does not install what it sees there.
    [packages] = environment.glob("lib/python3*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    stamp.write_text(wanted)
    return environment


def sandbox(folder: Path) -> list[str]:
    """The beginning of a command that sees this machine's files, can write into `folder` only, and has no network."""
    bubblewrap = shutil.which("bwrap")
    if not bubblewrap:
        pytest.skip("AWS's toolkits need a sandbox: install bubblewrap (bwrap)")
    etc = [argument for path in Path("/etc").iterdir() for argument in ("--ro-bind", str(path), str(path))]
    command = [bubblewrap, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-net", "--unshare-pid", "--die-with-parent"]
    command += ["--tmpfs", "/etc", *etc, "--tmpfs", "/tmp", "--ro-bind", str(ROOT), str(ROOT)]
    command += ["--ro-bind", sys.prefix, sys.prefix, "--bind", str(folder), str(folder)]
    probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"AWS's toolkits need a sandbox, and bwrap cannot make one here: {probe.stderr.strip()}")
    return command


@pytest.fixture(scope="module", params=["pytorch", "huggingface"])
def replies(request: pytest.FixtureRequest, toolkits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Form, dict[str, Any]]:
    """What the toolkit has answered to each of the requests, and which toolkit."""
    form: Form = request.param
    folder = tmp_path_factory.mktemp(form)
    build(ROOT / "whisper-models" / "nano.pt", folder / "model.tar.gz", form)
    with tarfile.open(folder / "model.tar.gz") as archive:
        archive.extractall(folder / "model", filter="data")
    asked = _requests(folder)
    (folder / "requests.json").write_text(json.dumps(list(asked.values())))
    made = Deployment(
        name=NAME,
        region=REGION,
        mode="realtime",
        form=form,
        image=IMAGE,
        role=ROLE,
        bucket=BUCKET,
        instance_type="ml.c5.2xlarge",
        archive=folder / "model.tar.gz",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_", "TS_", "PYTHONPATH", "AWS_"))}
    added = {
        "PATH": f"{toolkits / 'bin'}:{os.environ['PATH']}",
        "SAGEMAKER_BASE_DIR": str(folder),
        "HOME": str(folder),
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        "PIP_NO_INDEX": "1",  # everything is there
        **made.environment(),
    }
    client = Path(__file__).parent / "toolkit_client.py"
    command = [*sandbox(folder), str(toolkits / "bin" / "python"), str(client), MODULES[form], str(folder)]
    done = subprocess.run(command, env=kept | added, capture_output=True, text=True, timeout=600, check=False)
    log = folder / "toolkit.log"
    assert done.returncode == 0, done.stderr + (log.read_text(errors="replace")[-3000:] if log.exists() else "")
    return form, dict(zip(asked, json.loads((folder / "replies.json").read_text()), strict=True))


def _requests(folder: Path) -> dict[str, dict[str, str]]:
    body = {"audio": base64.b64encode(SOUND.read_bytes()).decode(), "language": "en", "word_timestamps": True}
    (folder / "body.json").write_text(json.dumps(body))
    (folder / "noise").write_bytes(b"this is no sound")
    (folder / "form").write_bytes(b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nsound\r\n--b--\r\n')
    kinds = {
        "raw": ("audio/flac", SOUND),
        "wav": ("audio/wav", SOUND),
        "any": ("application/octet-stream", SOUND),
        "options": (content_type("audio/flac", {"language": "en", "word_timestamps": "true"}), SOUND),
        "srt": (content_type("audio/flac", {"response_format": "srt"}), SOUND),
        "stream": (content_type("audio/flac", {"stream": "true"}), SOUND),
        "misspelt": (content_type("audio/flac", {"langage": "en"}), SOUND),
        "json": ("application/json", folder / "body.json"),
        "noise": ("audio/flac", folder / "noise"),
        "form": ("multipart/form-data; boundary=b", folder / "form"),
    }
    asked = {name: {"content_type": kind, "accept": "application/json", "file": str(file)} for name, (kind, file) in kinds.items()}
    return asked | {"vtt": {"content_type": "audio/flac", "accept": "text/vtt", "file": str(SOUND)}}


def test_a_recording_in_any_type(replies: tuple[Form, dict[str, Any]]) -> None:
    for kind in ("raw", "wav", "any"):
        reply = replies[1][kind]
        assert reply["status"] == 200 and reply["content_type"] == "application/json"
        transcript = json.loads(reply["body"])
        assert (transcript["text"], transcript["model"]) == (WORDS, "nano") and transcript["segments"]


def test_options_in_content_type_and_in_json(replies: tuple[Form, dict[str, Any]]) -> None:
    for kind in ("options", "json"):
        assert replies[1][kind]["status"] == 200
        assert [word["word"] for word in json.loads(replies[1][kind]["body"])["segments"][0]["words"]] == [
            f" {word}" for word in WORDS.split()
        ]


def test_formats(replies: tuple[Form, dict[str, Any]]) -> None:
    form, answers = replies
    assert answers["srt"]["status"] == answers["vtt"]["status"] == 200
    assert answers["srt"]["body"].startswith("1\n00:00:00,") and answers["vtt"]["body"].startswith("WEBVTT")
    kinds = (answers["srt"]["content_type"], answers["vtt"]["content_type"])
    own = ("application/x-subrip; charset=utf-8", "text/vtt; charset=utf-8")
    assert kinds == (own if form == "pytorch" else ("application/json", "text/vtt")), "Hugging Face's toolkit repeats Accept"


def test_a_stream_arrives_as_a_whole(replies: tuple[Form, dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in replies[1]["stream"]["body"].splitlines()]
    assert [line["type"] for line in lines] == ["segment", "transcript"] and lines[-1]["text"] == WORDS


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("misspelt", 400, "unknown field 'x-whisper-langage'; did you mean 'language'?"),
        ("noise", 415, "the upload is not audio in a known container"),
        ("form", 400, "this container takes no forms: send the recording as the body, or as base64 in JSON"),
    ],
)
def test_bad_input_is_one_clear_error(replies: tuple[Form, dict[str, Any]], kind: str, status: int, message: str) -> None:
    reply = replies[1][kind]
    assert reply["status"] == status and reply["content_type"] == "application/json"
    assert json.loads(reply["body"])["error"]["message"].startswith(message)
