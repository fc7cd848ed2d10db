"""Serves the page and its files, with a strict Content-Security-Policy and with entity tags."""

from __future__ import annotations

import hashlib
import html
from functools import cache
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from whispercore.api.values import for_message
from whispercore.errors import NotFound
from whispercore.openai_whisper import tokenizer

router = APIRouter()

FOLDER = Path(__file__).parent
TYPES = MappingProxyType({".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"})
"""The files of the folder that are served, by their ending. All are UTF-8."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "media-src blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""The page loads nothing from elsewhere and runs no inline code. Recordings are played from memory (blob:)."""
HEADERS = MappingProxyType(
    {
        "content-security-policy": POLICY,
        "permissions-policy": "microphone=(self), camera=(), geolocation=()",
        "cache-control": "no-cache",  # a browser asks each time, so all modules are of the same version
    }
)


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """The page."""
    address = html.escape(str(request.base_url).rstrip("/"))
    return _answer(request, _index().replace("{address}", address).encode(), "text/html")


@router.get("/page/{name}", include_in_schema=False)
async def file(request: Request, name: str) -> Response:
    """A style sheet, module or image of the page. Raises NotFound."""
    content = _files().get(name)
    if content is None:
        raise NotFound(f"the page has no file {for_message(name)}")
    return _answer(request, content, TYPES[Path(name).suffix])


@cache
def _index() -> str:
    """The page with Whisper's languages, in the order of their English names."""
    names = sorted((name.title(), code) for code, name in tokenizer.LANGUAGES.items())
    options = "".join(f'<option value="{code}">{html.escape(name)}</option>' for name, code in names)
    return (FOLDER / "index.html").read_text(encoding="utf-8").replace("<!-- languages -->", options)


@cache
def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}


def _answer(request: Request, content: bytes, kind: str) -> Response:
    """The content, or 304 when the browser has it."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "etag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=f"{kind}; charset=utf-8")
