"""Makes a deployment. What fails or is interrupted removes what it has made, so nothing goes on costing money."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.sagemaker.api import Api
from deploy.sagemaker.deployment import Deployment
from deploy.sagemaker.failure import DeployError, Missing, Refused
from deploy.sagemaker.invocation import Invocation, invoke
from deploy.sagemaker.limits import LIMITS, SERVER_BYTES, check_content_type, check_payload
from deploy.sagemaker.removal import (
    POLL_SECONDS,
    remove_endpoint,
    remove_endpoint_config,
    remove_model,
    remove_scaling,
    remove_topic,
    stop_transform_jobs,
)
from deploy.sagemaker.scaling import scale
from deploy.sagemaker.storage import check_bucket, delete_objects, objects, split_uri, unfinished_uploads, upload

Say = Callable[[str], None]

PROBE = Path(__file__).resolve().parents[2] / "samples" / "timer.flac"
PROBE_ATTEMPTS = 10
"""Ten minutes: a container that has not loaded its model lets a request wait, and SageMaker gives it up after 60 s."""


def deploy(api: Api, deployment: Deployment, say: Say, *, detach: bool = False) -> str:
    """Make the endpoint, or run the batch job. Returns a line about the result.

    `detach`: return when the batch job has begun; `teardown` removes its model later. Raises DeployError; then, and
    when interrupted, everything that was made is removed.
    """
    _check(api, deployment)
    largest = _check_inputs(api, deployment) if deployment.mode == "batch" else 0
    with _removed_on_failure(say, deployment.name) as made:
        if deployment.archive:
            say(f"uploading {deployment.archive} to s3://{deployment.bucket}/{deployment.archive_key}")
            upload(api, deployment.archive, deployment.bucket, deployment.archive_key, deployment.names)
            made.append(lambda: _remove_archive(api, deployment))
        _create(made, lambda: remove_model(api, deployment.names), lambda: api("sagemaker", "create_model", **deployment.model()))
        return _run_job(api, deployment, largest, made, say, detach=detach) if largest else _serve(api, deployment, made, say)


def _serve(api: Api, deployment: Deployment, made: list[Callable[[], None]], say: Say) -> str:
    """Make the endpoint and wait until it is in service."""
    names = deployment.names
    if deployment.notify:
        topic = {"Name": names.name, "Tags": names.tags}
        _create(made, lambda: remove_topic(api, names), lambda: api("sns", "create_topic", **topic))
        if deployment.email:
            api("sns", "subscribe", TopicArn=deployment.topic, Protocol="email", Endpoint=deployment.email)
            say(f"SNS has written to {deployment.email}: follow the link there, and each finished transcript is announced")
    config, endpoint = deployment.endpoint_config(), deployment.endpoint()
    _create(made, lambda: remove_endpoint_config(api, names), lambda: api("sagemaker", "create_endpoint_config", **config))
    _create(made, lambda: remove_endpoint(api, names, say), lambda: api("sagemaker", "create_endpoint", **endpoint))
    say(f"{deployment.instances} × {deployment.instance_type} from now on until `teardown`; starting takes 5 to 15 minutes")
    _wait_for_endpoint(api, deployment)
    made.append(lambda: delete_objects(api, deployment.bucket, names.inputs))
    _probe(api, deployment, say)
    if deployment.scales:
        made.append(lambda: remove_scaling(api, names))  # before, because it makes several resources
        scale(api, deployment)
    return f"{names.name} is in service; `deploy.py invoke --name {names.name} --mode {deployment.mode} FILE` sends it a recording"


def _wait_for_endpoint(api: Api, deployment: Deployment) -> None:
    while True:
        endpoint = api("sagemaker", "describe_endpoint", EndpointName=deployment.name)
        if endpoint["EndpointStatus"] == "InService":
            return
        if endpoint["EndpointStatus"] != "Creating":
            reason = endpoint.get("FailureReason", "AWS gives no reason")
            log = f"its log, if it has written one, is CloudWatch's /aws/sagemaker/Endpoints/{deployment.name}"
            raise DeployError(f"the endpoint is {endpoint['EndpointStatus']}: {reason}; {log}")
        api.pause(POLL_SECONDS)


def _probe(api: Api, deployment: Deployment, say: Say) -> None:
    """Have a recording transcribed: AWS's own containers answer health checks before they have loaded the model.

    Raises DeployError when no attempt succeeds.
    """
    request = Invocation(
        name=deployment.name,
        mode="async" if deployment.mode == "async" else "realtime",
        file=PROBE,
        options={},
        bucket=deployment.bucket,
        wait_seconds=PROBE_ATTEMPTS * LIMITS["realtime"].seconds,
        keep_reply=False,
    )
    attempts = 1 if request.mode == "async" else PROBE_ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            invoke(api, request, say)
        except DeployError as error:
            if attempt == attempts:
                log = f"CloudWatch's /aws/sagemaker/Endpoints/{deployment.name} has its log"
                raise DeployError(f"the endpoint is in service but transcribes nothing: {error}; {log}") from error
            api.pause(POLL_SECONDS)
        else:
            say(f"it has transcribed {PROBE.name}")
            return


def _run_job(api: Api, deployment: Deployment, largest: int, made: list[Callable[[], None]], say: Say, *, detach: bool) -> str:
    """Run the batch job. When it is done, its model and archive are removed, and the transcripts stay."""
    names = deployment.names
    job, output = names.new_job(), f"s3://{deployment.bucket}/{names.results[0]}"
    request = deployment.transform_job(job, largest)
    _create(made, lambda: stop_transform_jobs(api, names), lambda: api("sagemaker", "create_transform_job", **request))
    say(f"job {job}: {deployment.instances} × {deployment.instance_type} until it is done")
    if detach:
        return f"{job} runs; the transcripts will be in {output}; `deploy.py teardown --name {names.name}` removes its model afterwards"
    while (state := api("sagemaker", "describe_transform_job", TransformJobName=job))["TransformJobStatus"] in ("InProgress", "Stopping"):
        api.pause(POLL_SECONDS)
    if state["TransformJobStatus"] != "Completed":
        reason = state.get("FailureReason", "AWS gives no reason")
        raise DeployError(f"{job} is {state['TransformJobStatus']}: {reason}; transcripts that were finished before are in {output}")
    remove_model(api, names)
    _remove_archive(api, deployment)
    return f"done: the transcripts are in {output}, as NAME.out; the model and its archive are removed, nothing runs any more"


def _check(api: Api, deployment: Deployment) -> None:
    """Raise DeployError for what would fail later, before anything is made."""
    if deployment.archive and not deployment.archive.is_file():
        raise DeployError(f"no archive at {deployment.archive}: `deploy.py build` makes it")
    check_bucket(api, deployment.bucket)
    describe = {
        "endpoint": {"EndpointName": deployment.name},
        "endpoint_config": {"EndpointConfigName": deployment.name},
        "model": {"ModelName": deployment.name},
    }
    for resource, parameters in describe.items():
        try:
            api("sagemaker", f"describe_{resource}", **parameters)
        except Missing:
            continue
        title = resource.replace("_", " ")
        raise DeployError(f"there is an {title} '{deployment.name}' already: `deploy.py teardown` removes it, or give another --name")


def _check_inputs(api: Api, deployment: Deployment) -> int:
    """Bytes of the largest recording of a batch. Raises DeployError for one that cannot be transcribed."""
    check_content_type("batch", deployment.content_type)
    bucket, prefix = split_uri(deployment.inputs)
    check_bucket(api, bucket)
    for started in unfinished_uploads(api, bucket, prefix):
        place = f"--bucket {bucket} --key {started['Key']} --upload-id {started['UploadId']}"
        raise DeployError(f"{started['Key']} is only half uploaded: finish it, or give it up (aws s3api abort-multipart-upload {place})")
    server_limit = int(deployment.settings.get("MAX_AUDIO_BYTES", SERVER_BYTES))
    sizes = {item["Key"]: int(item["Size"]) for item in objects(api, bucket, prefix) if not item["Key"].endswith("/")}
    if not sizes:
        raise DeployError(f"{deployment.inputs} holds no recordings: upload them first (aws s3 cp FOLDER {deployment.inputs} --recursive)")
    for key, size in sizes.items():
        check_payload("batch", f"s3://{bucket}/{key}", size, server_limit=server_limit)
    return max(sizes.values())


def _create(made: list[Callable[[], None]], remove: Callable[[], None], create: Callable[[], Any]) -> None:
    """Run `create`, and note `remove` unless AWS has refused: after a broken connection the resource may exist."""
    try:
        create()
    except Refused:
        raise
    except BaseException:
        made.append(remove)
        raise
    made.append(remove)


@contextmanager
def _removed_on_failure(say: Say, name: str) -> Iterator[list[Callable[[], None]]]:
    """Yields a list. When the block fails, its functions are called, the last one first."""
    made: list[Callable[[], None]] = []
    try:
        yield made
    except BaseException as error:
        if made:
            say(f"{'interrupted' if isinstance(error, KeyboardInterrupt) else 'failed'}: removing what was made")
        for remove in reversed(made):
            try:
                remove()
            except DeployError as problem:
                say(f"{problem}; run `deploy.py teardown --name {name}`, because what is left may cost money")
            except KeyboardInterrupt:
                say(f"interrupted again: run `deploy.py teardown --name {name}`, because what is left costs money")
                raise
        raise


def _remove_archive(api: Api, deployment: Deployment) -> None:
    if deployment.archive:
        delete_objects(api, deployment.bucket, deployment.archive_key)
