"""The gateway's application as a Ray Serve deployment: each replica has the core in its own process.

serve run deploy.ray.serve_app:app                     # from the root of the checkout; settings are WHISPER_ variables
serve run deploy.ray.serve_app:build num_gpus=1 max_replicas=8

A replica's memory holds what the gateway keeps: jobs and rate limits are those of one replica.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from gateway.app import create_app
from gateway.configuration import Configuration
from gateway.inprocess import InProcess, load

ONGOING_REQUESTS = 64
"""Open requests of a replica before others get them: its batches want several at once."""


def application() -> Any:
    """The ASGI application of a replica, whose uploads and data lie in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="whisper-replica-"))
    configuration = replace(Configuration.load(), torchserve="", spool=folder / "spool", data=folder / "data")
    return create_app(configuration, InProcess(load))


@serve.deployment(max_ongoing_requests=ONGOING_REQUESTS)
@serve.ingress(application)
class Whisper:
    """A replica. Ray starts and ends the application, and with it the model."""


def build(arguments: dict[str, str]) -> Application:
    """The application with `num_cpus`, `num_gpus` of a replica, and `min_replicas`, `max_replicas`."""
    resources = {name: float(arguments[name]) for name in ("num_cpus", "num_gpus") if name in arguments}
    replicas = {name: int(arguments.get(name, 1)) for name in ("min_replicas", "max_replicas")}
    scaling = {**replicas, "target_ongoing_requests": ONGOING_REQUESTS // 2}
    deployment: Any = Whisper  # what the decorators make of the class
    bound: Application = deployment.options(ray_actor_options=resources, autoscaling_config=scaling).bind()
    return bound


app = build({})
