"""Runs inside of a sandbox without a network: starts one of AWS's toolkits, sends it requests, writes the replies.

python toolkit_client.py MODULE FOLDER: reads FOLDER/requests.json, a list of {content_type, accept, file}, and writes
FOLDER/replies.json, a list of {status, content_type, body}. Needs the standard library only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ADDRESS = "http://127.0.0.1:8080"
START_SECONDS = 180.0


def main(module: str, folder: Path) -> None:
    with (folder / "toolkit.log").open("wb") as log:
        toolkit = subprocess.Popen([sys.executable, "-c", f"from {module} import main; main()"], stdout=log, stderr=log, cwd=folder)
        try:
            deadline = time.monotonic() + START_SECONDS
            while send("GET", "/ping")["status"] != 200:
                if toolkit.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the toolkit does not answer /ping")
                time.sleep(0.5)
            requests = json.loads((folder / "requests.json").read_text())
            replies = [ready(request, deadline) for request in requests]
            (folder / "replies.json").write_text(json.dumps(replies))
        finally:
            toolkit.terminate()


def ready(request: dict[str, str], deadline: float) -> dict[str, Any]:
    """The reply to a request.

    The toolkits answer /ping before they have loaded the model. Until then they refuse requests or let them wait.
    """
    headers = {"Content-Type": request["content_type"], "Accept": request["accept"]}
    while True:
        reply = send("POST", "/invocations", Path(request["file"]).read_bytes(), headers)
        loading = not reply["status"] or "model_name is required" in reply["body"] or "Model not found" in reply["body"]
        if not loading or time.monotonic() > deadline:
            return reply
        time.sleep(0.5)


def send(method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(ADDRESS + path, data=body, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return {"status": reply.status, "content_type": reply.headers["Content-Type"], "body": reply.read().decode()}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "content_type": error.headers["Content-Type"], "body": error.read().decode()}
    except OSError as error:
        return {"status": 0, "content_type": "", "body": str(error)}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
