"""The image, the template and deploy.sh, without a build and without an account."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from whispercore.settings import unknown_variables

from .conftest import FILES, ROOT

DIGEST = "sha256:" + "0" * 64


class Template(yaml.SafeLoader):
    """CloudFormation's YAML. !Ref and the other short forms become {"Ref": …}."""


Template.add_multi_constructor("!", lambda loader, tag, node: {tag: _content(loader, node)})


def _content(loader: Any, node: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else loader.construct_mapping(node, deep=True)


@pytest.fixture(scope="module")
def template() -> Any:
    return yaml.load((FILES / "template.yaml").read_text(), Template)  # a SafeLoader


@pytest.fixture(scope="module")
def instructions() -> list[str]:
    """The Dockerfile's instructions, with continued lines joined."""
    lines = [line for line in (FILES / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def test_the_dockerfile_passes_the_linter() -> None:
    done = subprocess.run(["hadolint", FILES / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_in_the_context(instructions: list[str]) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "!deploy/lambda" in ignored
    for line in instructions:
        words = shlex.split(line)
        if words[0] != "COPY" or words[1].startswith("--from"):
            continue
        for source in words[1:-1]:
            assert list(ROOT.glob(source)), f"there is no {source}"
            assert any(_admits(rule[1:], source) for rule in ignored if rule.startswith("!")), f"{source} is not in the context"


def _admits(rule: str, source: str) -> bool:
    return source == rule or source.startswith(f"{rule}/") or ("*" in rule and Path(source).match(rule))


def test_the_function_runs_as_no_root_and_without_pytorch(instructions: list[str]) -> None:
    last = instructions[max(index for index, line in enumerate(instructions) if line.startswith("FROM")) :]
    assert "USER 1000" in last and not any("--from=converter" in line for line in last)
    assert 'CMD ["lambda_function.lambda_handler"]' in last


def test_requirements_have_their_versions_from_the_core() -> None:
    def names(path: Path) -> set[str]:
        return set(re.findall(r"^([a-z][\w-]*)", path.read_text(), re.MULTILINE))

    own = names(FILES / "requirements.txt") | names(FILES / "requirements-files.txt")
    assert own - names(ROOT / "requirements.txt") == {"awslambdaric", "botocore"}
    assert not own & {"torch", "numba", "boto3"}


def test_the_templates_variables_are_known(template: Any) -> None:
    variables = template["Resources"]["Function"]["Properties"]["Environment"]["Variables"]
    assert len(variables) >= 4 and not unknown_variables(dict.fromkeys(variables, "x"))


def test_the_functions_rights_are_the_least(template: Any) -> None:
    [policy] = template["Resources"]["Function"]["Properties"]["Policies"]
    rights = {statement["Sid"]: statement for statement in policy["Statement"]}
    assert {name: statement["Action"] for name, statement in rights.items()} == {
        "ReadRecordings": "s3:GetObject",
        "WriteAndCompareTranscripts": ["s3:PutObject", "s3:GetObject"],
        "RemoveErrorsOfEarlierRecordings": "s3:DeleteObject",
        "TellMissingObjectsFromMissingRights": "s3:ListBucket",
    }
    assert all("${AWS::StackName}-" in str(statement["Resource"]) for statement in rights.values())
    assert str(rights["RemoveErrorsOfEarlierRecordings"]["Resource"]["Sub"]).endswith("/transcripts/*.error.json")


def test_a_failed_event_is_kept_and_results_start_nothing(template: Any) -> None:
    properties = template["Resources"]["Function"]["Properties"]
    assert properties["EventInvokeConfig"]["DestinationConfig"]["OnFailure"]["Type"] == "SQS"
    assert properties["Events"]["Upload"]["Properties"]["Bucket"] == {"Ref": "Recordings"}
    assert "transcripts" in str(properties["Environment"]["Variables"]["WHISPER_OUTPUT_BUCKET"])


AWS = f"""#!/usr/bin/env bash
echo "aws $*" >>"$CALLS"
case "$*" in
    "sts get-caller-identity"*) echo 123456789012 ;;
    "ecr describe-repositories"*) exit 1 ;;
    "ecr get-login-password"*) echo password ;;
    "ecr describe-images"*) echo {DIGEST} ;;
    "cloudformation describe-stacks"*) echo "${{STACK_OUTPUT:-whisper-Function}}" ;;
    "lambda get-function"*) echo "${{RUNNING:-123456789012.dkr.ecr.eu-central-1.amazonaws.com/whisper@{DIGEST}}}" ;;
esac
"""
DOCKER = """#!/usr/bin/env bash
[[ $1 != login ]] || cat >/dev/null
echo "docker $*" >>"$CALLS"
"""


@pytest.fixture
def account(tmp_path: Path) -> dict[str, str]:
    """An environment whose `aws` and `docker` only record how they are called."""
    for name, script in (("aws", AWS), ("docker", DOCKER)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "AWS_REGION": "eu-central-1",
        "HOME": str(tmp_path),
    }


def deploy(environment: dict[str, str], *arguments: str) -> tuple[int, str, list[str]]:
    """The exit status, the messages, and the calls of deploy.sh."""
    done = subprocess.run([FILES / "deploy.sh", *arguments], env=environment, capture_output=True, text=True)
    calls = Path(environment["CALLS"])
    return done.returncode, done.stderr, calls.read_text().splitlines() if calls.exists() else []


def test_deploy_pushes_by_digest_and_waits_until_the_function_runs_it(account: dict[str, str]) -> None:
    status, messages, calls = deploy(account, "--memory", "10240")
    assert status == 0, messages
    order = [
        "aws ecr create-repository",
        "docker login",
        "docker build --platform linux/amd64 --provenance=false",
        "docker push",
        "aws ecr describe-images",
        "aws cloudformation deploy",
        "aws lambda wait function-updated-v2 --function-name whisper-Function",
        "aws lambda get-function",
    ]
    places = [next(index for index, call in enumerate(calls) if call.startswith(begin)) for begin in order]
    assert places == sorted(places)
    assert f"ImageUri=123456789012.dkr.ecr.eu-central-1.amazonaws.com/whisper@{DIGEST} MemorySize=10240" in calls[places[5]]


def test_an_old_image_that_still_runs_is_an_error(account: dict[str, str]) -> None:
    status, messages, _ = deploy(account | {"RUNNING": "old@sha256:1"})
    assert status == 1 and "runs old@sha256:1, not" in messages


def test_image_only_changes_only_the_image(account: dict[str, str]) -> None:
    status, messages, calls = deploy(account, "--image-only")
    assert status == 0, messages
    assert not any("cloudformation deploy" in call for call in calls)
    assert any(call.startswith("aws lambda update-function-code") and DIGEST in call for call in calls)


def test_a_dry_run_calls_nothing_and_hides_the_key(account: dict[str, str]) -> None:
    status, messages, calls = deploy(account | {"WHISPER_API_KEY": "very secret"}, "--dry-run", "--url-auth", "NONE")
    assert (status, calls) == (0, []) and "docker build" in messages and "cloudformation deploy" in messages
    assert "secret" not in messages and "ApiKey=" in messages


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "128"], "--memory must be 1769 to 10240"),
        (["--memory", "much"], "--memory must be 1769 to 10240"),
        (["--url-auth", "NONE"], "with an API key in WHISPER_API_KEY"),
        (["--stack", "Whisper_1"], "for the names of buckets"),
        (["--modle", "base"], "unknown argument --modle"),
    ],
)
def test_wrong_arguments_end_before_anything_is_called(account: dict[str, str], arguments: list[str], words: str) -> None:
    status, messages, calls = deploy(account, *arguments)
    assert status == 1 and words in messages and calls == []


def test_every_option_is_explained(account: dict[str, str]) -> None:
    done = subprocess.run([FILES / "deploy.sh", "--help"], env=account, capture_output=True, text=True)
    script = (FILES / "deploy.sh").read_text()
    assert all(option in done.stdout for option in re.findall(r"^ +(--[\w-]+)\)", script, re.MULTILINE))
