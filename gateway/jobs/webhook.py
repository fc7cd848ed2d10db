"""Calls of webhooks, signed as the Standard Webhooks specification says, so that OpenAI's clients can verify them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

import anyio
import httpx

from whispercore.api.reply import json_bytes

from ..configuration import Configuration
from ..urls import GuardedTransport

CALL_SECONDS = 15.0
DELAYS = (5.0, 30.0, 120.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0)
"""Seconds until the next try after each failed one; after the last the delivery is given up."""
PREFIX = "whsec_"


def signed_headers(event_id: str, body: bytes, secret: str, timestamp: int) -> dict[str, str]:
    """webhook-id, webhook-timestamp and webhook-signature: HMAC-SHA256 over "ID.TIMESTAMP.BODY"."""
    message = b".".join((event_id.encode(), str(timestamp).encode(), body))
    signature = base64.b64encode(hmac.new(_key(secret), message, hashlib.sha256).digest()).decode()
    return {"webhook-id": event_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}


def next_delivery(deliveries: int, now: float) -> float:
    """When to call again after so many failed calls: a Unix time, 0.0 for never."""
    return now + DELAYS[deliveries - 1] if deliveries <= len(DELAYS) else 0.0


async def call(url: str, event_id: str, event: Mapping[str, object], configuration: Configuration) -> str:
    """Call a webhook once. Returns why it failed, or "" for a status of 2xx. It reads no more than the status."""
    body = json_bytes(dict(event))
    headers = {"content-type": "application/json", "user-agent": "whisper-torchserve"}
    if configuration.webhook_secret:
        headers |= signed_headers(event_id, body, configuration.webhook_secret, int(time.time()))
    transport = GuardedTransport(configuration.private_hosts)
    try:
        client = httpx.AsyncClient(transport=transport, timeout=CALL_SECONDS, trust_env=False)
        with anyio.fail_after(2 * CALL_SECONDS):
            async with client, client.stream("POST", url, content=body, headers=headers) as response:
                return "" if response.is_success else f"status {response.status_code}"
    except Exception as error:  # whatever a stranger's server does, the delivery has failed
        return str(error) or type(error).__name__


def _key(secret: str) -> bytes:
    """The key of a secret: base64 after "whsec_", else the text itself."""
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True) if secret.startswith(PREFIX) else secret.encode()
    except binascii.Error:
        return secret.encode()
