"""Liveness, readiness and metrics. They need no API key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from whispercore.torchserve.handshake import API_VERSION

from .context import gateway_of

router = APIRouter()


@router.head("/health/live")
@router.get("/health/live")
async def live() -> Response:
    """200 while the process answers. A failure calls for a restart."""
    return JSONResponse({"status": "live"})


@router.head("/health/ready")
@router.get("/health/ready")
@router.get(f"/predictions/whisper/{API_VERSION}/health/ready")
@router.get("/ping")  # SageMaker's path
async def ready(request: Request) -> Response:
    """200 when a recording would be transcribed now, else 503."""
    reply = await gateway_of(request).backend.readiness()
    assert isinstance(reply.body, bytes)
    return Response(reply.body, reply.status, dict(reply.headers), reply.content_type)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' metrics, of the gateway and of the core."""
    gateway = gateway_of(request)
    return PlainTextResponse(gateway.telemetry.text() + await gateway.backend.metrics(), media_type="text/plain; version=0.0.4")
