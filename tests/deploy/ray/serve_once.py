"""Serves the gateway's application by Ray Serve, asks it once, and prints the replies as JSON: a script."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import ray
import requests
from ray import serve

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from deploy.ray.serve_app import build  # noqa: E402
from tests.unit.doubles import wav  # noqa: E402


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"num_cpus": "0.5", "max_replicas": "2"}), name="whisper")
    address = f"http://127.0.0.1:{port}"
    ready = requests.get(f"{address}/ping", timeout=60)
    form = {"model": "whisper-1", "vad_filter": "false"}
    good = requests.post(f"{address}/v1/audio/transcriptions", files={"file": ("a.wav", wav(2))}, data=form, timeout=60)
    bad = requests.post(f"{address}/v1/audio/transcriptions", files={"file": ("a.wav", b"words")}, data=form, timeout=60)
    print(json.dumps({"ready": ready.status_code, "good": [good.status_code, good.json()], "bad": [bad.status_code, bad.json()]}))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
