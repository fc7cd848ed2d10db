"""The entry, `lambda_function.lambda_handler`. Lambda imports this file once for each environment, which loads the model.

Nothing is written but what libraries put into /tmp; no shared memory is used, which Lambda does not have.
"""

from __future__ import annotations

import logging
import os
import time

_BEGAN = time.monotonic()

from transcription_function import Function  # noqa: E402  # the time of the imports is logged

from whispercore import __version__  # noqa: E402


def set_up_logging() -> None:
    """Log from level info on. Lambda's client has put its handler on the root logger; AWS_LAMBDA_LOG_LEVEL sets its level."""
    if "AWS_LAMBDA_LOG_LEVEL" not in os.environ:
        logging.getLogger().setLevel(logging.INFO)
    for name in ("boto3", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


set_up_logging()
lambda_handler = Function()
logging.getLogger(__name__).info(
    "whispercore %s is ready after %.2f s: %s", __version__, time.monotonic() - _BEGAN, lambda_handler.intake.transcriber.engine.describe()
)
