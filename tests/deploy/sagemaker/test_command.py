"""The command: a dry run of everything without an account, exit statuses, and one line for what goes wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.sagemaker import deploy as command
from deploy.sagemaker.deploy import main
from deploy.sagemaker.failure import Refused
from deploy.sagemaker.model_archive import ROOT
from tests.deploy.sagemaker.account import BUCKET, IMAGE, NAME, ROLE, Account

PLACE = ("--image", IMAGE, "--role", ROLE, "--bucket", BUCKET, "--instance-type", "ml.c5.2xlarge")
SOUND = str(ROOT / "samples" / "timer.flac")


@pytest.fixture(autouse=True)
def _signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command lets SIGTERM interrupt it; pytest keeps its own."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def printed(output: str) -> list[str]:
    """The requests that a dry run has printed, in order, as service.operation."""
    return re.findall(r'^  "([a-z0-9-]+\.\w+)": \{', output, re.MULTILINE)


def test_a_dry_run_prints_every_request_and_sends_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No account, no region and no moto: a request would fail."""
    archive = tmp_path / "model.tar.gz"
    nano = str(ROOT / "whisper-models" / "nano.pt")
    assert main(["build", "--model", nano, "--form", "container", "--archive", str(archive), "--dry-run"]) == 0
    assert not archive.exists()
    archive.write_bytes(b"weights")
    expected = {
        "realtime": [
            "sagemaker.create_model",
            "sagemaker.create_endpoint_config",
            "sagemaker.create_endpoint",
            "sagemaker-runtime.invoke_endpoint",
        ],
        "async": ["sns.create_topic", "s3.upload_file", "sagemaker-runtime.invoke_endpoint_async", "cloudwatch.put_metric_alarm"],
        "batch": ["s3.list_objects_v2", "sagemaker.create_transform_job", "sagemaker.delete_model", "s3.delete_objects"],
    }
    more = {"async": ["--email", "someone@example.com"], "batch": ["--input", f"s3://{BUCKET}/talks/"], "realtime": []}
    for mode, operations in expected.items():
        assert main(["deploy", "--mode", mode, *PLACE, "--archive", str(archive), "--dry-run", *more[mode]]) == 0
        output = capsys.readouterr()
        assert set(operations) <= set(printed(output.out))
        assert all(line.startswith("deploy.py: (dry run)") for line in output.err.splitlines())
    assert main(["invoke", SOUND, "--dry-run"]) == main(["invoke", SOUND, "--mode", "async", "--bucket", BUCKET, "--dry-run"]) == 0
    assert "<50,302 bytes>" in capsys.readouterr().out
    assert main(["status", "--dry-run"]) == main(["teardown", "--results", "--dry-run"]) == main(["policy", "--dry-run"]) == 0
    assert {"sagemaker.delete_endpoint", "sns.delete_topic", "s3.delete_objects"} <= set(printed(capsys.readouterr().out))


def test_a_dry_run_is_what_is_sent(
    aws: Account, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dry run of a deployment prints the requests that create something, with their parameters, as they are sent."""
    monkeypatch.setattr(command, "Aws", lambda _: aws)
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(b"weights")
    arguments = ["deploy", "--mode", "async", *PLACE, "--archive", str(archive), "--max-instances", "3", "--region", "eu-west-1"]
    assert main([*arguments, "--dry-run"]) == 0
    output = capsys.readouterr().out
    shown: list[dict[str, object]] = []
    while output.strip():
        request, end = json.JSONDecoder().raw_decode(output := output.lstrip())
        shown.append(request)
        output = output[end:]
    assert main(arguments) == 0
    sent = {f"{service}.{operation}": parameters for service, operation, parameters in aws.requests}
    for name in ("sagemaker.create_model", "sagemaker.create_endpoint_config", "sagemaker.create_endpoint"):
        assert [request[name] for request in shown if name in request] == [sent[name]]
    making = re.compile(r"\.(create|put)_")
    names = [f"{service}.{operation}" for service, operation, _ in aws.requests]
    assert [name for request in shown for name in request if making.search(name)] == [name for name in names if making.search(name)]


def test_from_beginning_to_end(aws: Account, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Aws", lambda _: aws)
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(b"weights")
    place = [*PLACE, "--archive", str(archive), "--region", "eu-west-1"]
    assert main(["deploy", "--mode", "realtime", *place, "--setting", "dtype=int8"]) == 0
    assert aws.parameters("create_model")["PrimaryContainer"]["Environment"] == {"WHISPER_DTYPE": "int8"}
    capsys.readouterr()
    assert main(["invoke", SOUND, "--option", "language=en"]) == 0
    assert "Set a timer" in capsys.readouterr().out
    assert main(["status"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["endpoint"]["EndpointStatus"] == "InService" and report["jobs"] == []
    assert main(["teardown"]) == 0
    assert f"nothing of {NAME} runs any more" in capsys.readouterr().err
    assert main(["status"]) == 0 and json.loads(capsys.readouterr().out)["endpoint"] is None
    assert aws.left() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["invoke", "none.flac"], "none.flac cannot be read: No such file or directory"),
        (["invoke", SOUND, "--option", "language"], "'language' must be NAME=VALUE, each name once"),
        (["invoke", SOUND, "--mode", "async"], "--mode async needs --bucket"),
        (["deploy", "--mode", "realtime", *PLACE], "no AWS region is chosen: give --region"),
        (["teardown", "--name", "Not a name"], "cannot be a name"),
    ],
)
def test_what_goes_wrong_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1 and message in output.err


def test_a_teardown_that_fails_in_part_says_so(aws: Account, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, __: str, operation: str) -> None:
        if operation == "list_topics":
            raise Refused("sns list_topics: AWS denies it", "AccessDenied")

    monkeypatch.setattr(command, "Aws", lambda _: aws)
    aws.before = refuse
    assert main(["teardown", "--bucket", BUCKET]) == 1
    assert "not removed: topic: sns list_topics: AWS denies it" in capsys.readouterr().err


def test_the_policies_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "user", "--bucket", BUCKET, "--role", ROLE]) == 0
    assert ROLE in capsys.readouterr().out
    assert main(["policy"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"trust", "role", "user"}


@pytest.mark.slow
def test_it_runs_as_a_script_from_any_folder(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "sagemaker" / "deploy.py"
    done = subprocess.run([sys.executable, script, "invoke", SOUND, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed(done.stdout) == ["sagemaker-runtime.invoke_endpoint"]
