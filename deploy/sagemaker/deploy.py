#!/usr/bin/env python3
"""Whisper on Amazon SageMaker: build the archive, deploy, invoke, look, remove. docs/sagemaker.md walks through it.

python deploy/sagemaker/deploy.py build --model whisper-models/base.pt --form container
python deploy/sagemaker/deploy.py deploy --mode async --image IMAGE --role ROLE --bucket BUCKET --instance-type TYPE
python deploy/sagemaker/deploy.py invoke --mode async --bucket BUCKET meeting.mp3
python deploy/sagemaker/deploy.py teardown

Each command takes --dry-run, which prints the requests and sends none. Needs deploy/sagemaker/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import boto3

if not __package__:  # run as a script: this folder stands first, and `deploy` would be this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from deploy.sagemaker.api import Api, Aws, DryRun
from deploy.sagemaker.creation import deploy
from deploy.sagemaker.deployment import BUCKET_TAG, Deployment, Names
from deploy.sagemaker.failure import DeployError, Missing
from deploy.sagemaker.invocation import Invocation, content_type, invoke
from deploy.sagemaker.limits import SERVER_BYTES, Mode
from deploy.sagemaker.model_archive import Form, build
from deploy.sagemaker.policy import TRUST, role_policy, user_policy
from deploy.sagemaker.removal import teardown

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0, 1 after one line on standard error, 130 when interrupted."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a killed deployment removes what it has made, too
    try:
        status: int = asked.run(asked)
    except DeployError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def say(line: str) -> None:
    """Print one line for the user. Standard output is for replies and for the requests of a dry run."""
    print(f"deploy.py: {line}", file=sys.stderr, flush=True)


def _teller(asked: argparse.Namespace) -> Callable[[str], None]:
    """`say`, which in a dry run marks each line."""
    return (lambda line: say(f"(dry run) {line}")) if asked.dry_run else say


def _build(asked: argparse.Namespace) -> int:
    if asked.dry_run:
        _teller(asked)(f"{asked.archive} would be made of {asked.model}, form {asked.form}")
        return 0
    size = build(asked.model, asked.archive, asked.form)
    say(f"{asked.archive}: {size:,} bytes")
    return 0


def _deploy(asked: argparse.Namespace) -> int:
    deployment = Deployment(
        name=asked.name,
        region=_region(asked),
        mode=asked.mode,
        form=asked.form,
        image=asked.image,
        role=asked.role,
        bucket=asked.bucket,
        instance_type=asked.instance_type,
        archive=asked.archive,
        instances=asked.instances,
        max_instances=asked.max_instances,
        settings=_pairs(asked.setting, upper=True),
        notify=asked.notify or bool(asked.email),
        email=asked.email,
        inputs=asked.input,
        content_type=content_type(asked.content_type, _pairs(asked.option)),
        accept=asked.accept,
    )
    tell = _teller(asked)
    tell(deploy(_api(asked, found=False), deployment, tell, detach=asked.detach))
    return 0


def _invoke(asked: argparse.Namespace) -> int:
    invocation = Invocation(
        name=asked.name,
        mode=asked.mode,
        file=asked.file,
        options=_pairs(asked.option),
        accept=asked.accept,
        bucket=asked.bucket,
        wait_seconds=asked.wait_minutes * 60,
        payload_limit=asked.payload_limit,
        server_limit=asked.server_limit,
    )
    if asked.mode == "async" and not asked.bucket:
        raise DeployError("--mode async needs --bucket, the one of the deployment")
    reply = invoke(_api(asked, found=True), invocation, _teller(asked))
    sys.stdout.flush()
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()
    return 0


def _status(asked: argparse.Namespace) -> int:
    """Print the endpoint, and the batch jobs of this name, as JSON."""
    api, names = _api(asked, found=True), Names(asked.name)
    report: dict[str, Any] = {"endpoint": None}
    try:
        endpoint = api("sagemaker", "describe_endpoint", EndpointName=names.name)
        kept = ("EndpointStatus", "FailureReason", "ProductionVariants", "CreationTime")
        report["endpoint"] = {name: endpoint[name] for name in kept if name in endpoint}
    except Missing:
        pass
    jobs = api("sagemaker", "list_transform_jobs", NameContains=f"{names.name}-").get("TransformJobSummaries", [])
    shown = ("TransformJobName", "TransformJobStatus", "FailureReason", "CreationTime")
    report["jobs"] = [{name: job[name] for name in shown if name in job} for job in jobs if names.is_job(job["TransformJobName"])]
    if not asked.dry_run:
        print(json.dumps(report, indent=2, default=str))
    return 0


def _teardown(asked: argparse.Namespace) -> int:
    tell = _teller(asked)
    removal = teardown(_api(asked, found=True), Names(asked.name), asked.bucket or None, results=asked.results, say=tell)
    for failure in removal.failures:
        say(f"not removed: {failure}")
    if removal.failures:
        say("what is left may cost money: run teardown again when the reasons above are mended")
        return 1
    if removal.kept:
        tell(f"{len(removal.kept)} results stay, the first is {removal.kept[0]}: teardown --results removes them too")
    tell(f"nothing of {asked.name} runs any more")
    return 0


def _policy(asked: argparse.Namespace) -> int:
    names, inputs = Names(asked.name), asked.input.removeprefix("s3://")
    documents = {
        "trust": TRUST,
        "role": role_policy(names, asked.bucket, asked.repository, inputs),
        "user": user_policy(names, asked.bucket, asked.role, inputs),
    }
    print(json.dumps(documents[asked.document] if asked.document else documents, indent=2))
    return 0


def _api(asked: argparse.Namespace, *, found: bool) -> Api:
    return DryRun([*Names(asked.name).tags, {"Key": BUCKET_TAG, "Value": "<bucket>"}], found=found) if asked.dry_run else Aws(asked.region)


def _region(asked: argparse.Namespace) -> str:
    """The region, which the topic's ARN names. Raises DeployError when none is chosen."""
    region = asked.region or boto3.Session().region_name or ("REGION" if asked.dry_run else None)
    if region is None:
        raise DeployError("no AWS region is chosen: give --region, or set AWS_DEFAULT_REGION")
    return region


def _pairs(given: Sequence[str], *, upper: bool = False) -> dict[str, str]:
    """NAME=VALUE, each once."""
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.upper().removeprefix("WHISPER_") if upper else name
        if not equals or not name or name in pairs:
            raise DeployError(f"'{text}' must be NAME=VALUE, each name once")
        pairs[name] = value
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--name", default="whisper", help="the deployment's name; default: whisper")
        added.add_argument("--region", help="AWS region; default: the one that boto3 finds")
        added.add_argument("--dry-run", action="store_true", help="print the requests, and send none")
        return added

    made = command("build", _build, "make model.tar.gz of weights, and for AWS's own images of the code")
    made.add_argument("--model", type=Path, required=True, help="a .pt file, or a folder of weights")
    made.add_argument("--form", choices=get_args(Form), required=True, help="whose image will serve it")
    made.add_argument("--archive", type=Path, default=Path("model.tar.gz"), help="the file to write; default: model.tar.gz")

    new = command("deploy", _deploy, "make an endpoint, or run a batch")
    new.add_argument("--mode", choices=get_args(Mode), required=True)
    new.add_argument("--form", choices=get_args(Form), default="container", help="default: container, this repository's image")
    new.add_argument("--image", required=True, help="the image's address in ECR")
    new.add_argument("--role", required=True, help="the ARN of the role that SageMaker takes on: see policy")
    new.add_argument("--bucket", required=True, help="for the archive, for the recordings and replies of async, and the replies of batch")
    new.add_argument("--instance-type", required=True, help="such as ml.c7i.2xlarge or ml.g5.xlarge")
    new.add_argument("--archive", type=Path, help="model.tar.gz; default: the weights in the image")
    new.add_argument("--instances", type=int, default=1, help="at the start; default: 1")
    new.add_argument("--max-instances", type=int, default=1, help="the most that autoscaling starts; default: 1")
    new.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server, such as DTYPE=int8")
    new.add_argument("--notify", action="store_true", help="async: make an SNS topic that announces each reply")
    new.add_argument("--email", help="async: an address that the topic writes to; implies --notify")
    new.add_argument("--input", default="", metavar="S3", help="batch: the recordings, s3://BUCKET/PREFIX/")
    new.add_argument("--content-type", default="application/octet-stream", help="batch: the recordings' type")
    new.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="batch: an option, such as language=de")
    new.add_argument("--accept", default="application/json", help="batch: the replies' type, such as text/vtt")
    new.add_argument("--detach", action="store_true", help="batch: return when the job has begun")

    send = command("invoke", _invoke, "send a recording, and print the reply")
    send.add_argument("file", type=Path)
    send.add_argument("--mode", choices=("realtime", "async"), default="realtime", help="how the endpoint was deployed")
    send.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option, such as language=de")
    send.add_argument("--accept", default="application/json", help="the reply's type, such as text/vtt")
    send.add_argument("--bucket", default="", help="async: the deployment's bucket")
    send.add_argument("--wait-minutes", type=float, default=60.0, help="async: for the reply; default: 60")
    send.add_argument("--payload-limit", type=int, help="bytes; default: the mode's documented limit")
    send.add_argument("--server-limit", type=int, default=SERVER_BYTES, help="bytes, the server's max_audio_bytes; default: 157286400")

    command("status", _status, "print the endpoint's state, and the batch jobs")

    end = command("teardown", _teardown, "remove everything but the transcripts; may be repeated")
    end.add_argument("--bucket", default="", help="default: the one that the model names")
    end.add_argument("--results", action="store_true", help="remove the transcripts too")

    rights = command("policy", _policy, "print the IAM policies of least rights")
    rights.add_argument("document", nargs="?", choices=("trust", "role", "user"), help="default: all of them")
    rights.add_argument("--bucket", default="BUCKET")
    rights.add_argument("--role", default="arn:aws:iam::ACCOUNT:role/ROLE", help="the role's ARN")
    rights.add_argument("--repository", default="arn:aws:ecr:REGION:ACCOUNT:repository/NAME", help="the ARN of the image's repository")
    rights.add_argument("--input", default="", metavar="S3", help="the recordings of a batch, s3://BUCKET/PREFIX/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
