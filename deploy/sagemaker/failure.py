"""The error of a deployment, and AWS's errors as one line that says what to do."""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
)


class DeployError(Exception):
    """A deployment cannot begin or go on. The message is one line that says what to do."""


class Refused(DeployError):
    """AWS has answered a request with an error, so the request has changed nothing. `code`: AWS's own name of it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


_MISSING_CODES = frozenset(
    {"404", "NoSuchKey", "NotFound", "NotFoundException", "ObjectNotFoundException", "ResourceNotFound", "ResourceNotFoundException"}
)
_DENIED_CODES = frozenset({"403", "AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation"})


class Missing(Refused):
    """The resource that a request names does not exist."""


def translated(error: ClientError | BotoCoreError, service: str, operation: str) -> DeployError:
    """`error`, which boto3 has raised for an operation, as a DeployError."""
    what = f"{service} {operation}"
    if isinstance(error, ClientError):
        return _refused(error, what)
    if isinstance(error, NoCredentialsError):
        return DeployError("AWS has no credentials for this machine: run `aws configure`, or set AWS_PROFILE")
    if isinstance(error, NoRegionError):
        return DeployError("no AWS region is chosen: give --region, or set AWS_DEFAULT_REGION")
    if isinstance(error, EndpointConnectionError):
        return DeployError(f"{what}: AWS cannot be reached, or the region does not exist ({error})")
    if isinstance(error, ParamValidationError):
        return Refused(f"{what}: {' '.join(str(error).split())}", "ParamValidation")  # found before anything was sent
    return DeployError(f"{what} failed, its outcome is unknown: {' '.join(str(error).split())}")


def _refused(error: ClientError, what: str) -> Refused:
    code, message = str(error.response["Error"].get("Code", "")), " ".join(error.response["Error"].get("Message", "").split())
    if code == "NoSuchBucket":
        return Refused(f"{what}: {message}; make the bucket, or give another --bucket", code)
    if code in _DENIED_CODES:
        return Refused(f"{what}: AWS denies it: {message}; `deploy.py policy` prints the rights that are needed", code)
    # SageMaker reports a missing resource as a ValidationException.
    if code in _MISSING_CODES or (code == "ValidationException" and "could not find" in message.lower()):
        return Missing(f"{what}: {message}", code)
    return Refused(f"{what}: {code}: {message}", code)
