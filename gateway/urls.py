"""Recordings that a request names by URL: fetched into the spool, and never from inside the operator's network.

Server-side request forgery: the address is checked after the name has been resolved, at every connection, so also after
a redirect, and the connection goes to the checked address. See OWASP's "Server-Side Request Forgery Prevention".
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import httpcore
import httpx
from anyio.to_thread import run_sync

from whispercore.api.values import for_message
from whispercore.errors import InvalidRequest, TooLarge

from .configuration import Configuration
from .refusals import Forbidden
from .spool import Spool, Spooled

TOTAL_SECONDS, IDLE_SECONDS = 600.0, 30.0
MAX_REDIRECTS = 5
SCHEMES = ("http", "https", "s3")
MAX_URL = 4096
"""Characters."""
logger = logging.getLogger(__name__)


_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "fec0::/10")))
"""Python calls them global: IETF protocols and Oracle's metadata, Azure's host, the old site-local addresses (RFC 3879)."""
_HTTPCORE_ERRORS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol)


class _RefusedAddress(httpcore.ConnectError):
    """A name resolves to an address that must not be connected to."""


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, and to the hosts in `allowed` whatever their address is."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(host.lower() for host in allowed)
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        """Resolve the name, check every address, connect to the first."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} is not known") from error
        addresses = [str(entry[4][0]) for entry in found]
        if host.lower() not in self._allowed:
            for address in addresses:
                if not is_public(address):
                    logger.info("a URL was refused: %s has the address %s", host, address)
                    # the client is not told which address: it could ask for all names of the operator's network
                    raise _RefusedAddress(f"{host} has an address that is not public")
        return await self._network.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> httpcore.AsyncNetworkStream:
        """Refused."""
        raise _RefusedAddress("Unix sockets are not connected to")

    async def sleep(self, seconds: float) -> None:
        """Wait before a retry."""
        await anyio.sleep(seconds)


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx over a `GuardedNetwork`."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._pool = httpcore.AsyncConnectionPool(ssl_context=ssl.create_default_context(), network_backend=GuardedNetwork(allowed))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        url = httpcore.URL(scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path)
        response = await self._pool.handle_async_request(
            httpcore.Request(request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions)
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Stream(response), extensions=response.extensions)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet: not private, loopback, link-local, multicast or reserved."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    inner = (parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]) if parsed.version == 6 else None
    return all(_is_global(one) for one in (parsed, inner) if one is not None)


def _is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if any(address.version == network.version and address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def check_url(url: str) -> str:
    """The host of a URL that may be fetched. Raises InvalidRequest."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if len(url) > MAX_URL or not url.isprintable() or not host or parts.scheme not in SCHEMES:
        raise InvalidRequest(f"url must begin with http://, https:// or s3:// and name a host; got {for_message(url)}", param="url")
    return host


async def fetch(url: str, configuration: Configuration, spool: Spool, max_bytes: int) -> Spooled:
    """The recording at a URL, in a file of the spool.

    Raises Forbidden when this server fetches no URLs, or not from that address; InvalidRequest when it cannot be fetched;
    TooLarge beyond `max_bytes`.
    """
    host = check_url(url)
    if not configuration.allow_urls:
        raise Forbidden("this server fetches no URLs: send the file, or ask its operator to set WHISPER_ALLOW_URLS=true", param="url")
    if url.startswith("s3://"):
        if host not in configuration.buckets:
            message = "this server reads s3:// URLs of the buckets only that its operator lists in WHISPER_URL_BUCKETS"
            raise Forbidden(message, param="url", code="url_refused")
        return await _fetch_object(url, spool, max_bytes)
    if any(host == page or host.endswith(f".{page}") for page in configuration.page_hosts):
        return await _fetch_page(url, spool, max_bytes)
    client = httpx.AsyncClient(
        transport=GuardedTransport(configuration.private_hosts),
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        timeout=httpx.Timeout(IDLE_SECONDS),
        headers={"accept-encoding": "identity", "user-agent": "whisper-torchserve"},
        trust_env=False,
    )
    try:
        with anyio.fail_after(TOTAL_SECONDS):
            async with client, client.stream("GET", url) as response:
                return await _store(response, url, spool, max_bytes)
    except TimeoutError:
        raise _failed(url, f"it takes longer than {TOTAL_SECONDS:g} s") from None
    except _RefusedAddress as error:
        raise Forbidden(f"url: {error}", param="url", code="url_refused") from None
    except (httpx.HTTPError, httpx.InvalidURL, *_HTTPCORE_ERRORS) as error:
        raise _failed(url, str(error) or type(error).__name__) from None


async def _store(response: httpx.Response, url: str, spool: Spool, max_bytes: int) -> Spooled:
    if response.status_code != 200:
        raise _failed(url, f"it answers with status {response.status_code}")
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    with spool.writer(unquote(urlsplit(url).path.rpartition("/")[2])) as writer:
        async for piece in response.aiter_raw():
            writer.add(piece)
            if writer.size > max_bytes:
                raise _too_large(max_bytes)
            await writer.flush()
        return await writer.finish()


async def _fetch_object(url: str, spool: Spool, max_bytes: int) -> Spooled:
    """An object of S3, with the server's own credentials, by boto3 where that is installed."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise Forbidden("this server does not read s3:// URLs: its operator has to install boto3", param="url") from None
    parts = urlsplit(url)
    try:
        found = await run_sync(lambda: boto3.client("s3").get_object(Bucket=parts.netloc, Key=unquote(parts.path[1:])))
        with spool.writer(unquote(parts.path.rpartition("/")[2])) as writer:
            while piece := await run_sync(found["Body"].read, 1024 * 1024):
                writer.add(piece)
                if writer.size > max_bytes:
                    raise _too_large(max_bytes)
                await writer.flush()
            return await writer.finish()
    except (BotoCoreError, ClientError) as error:
        raise _failed(url, str(error)) from None


async def _fetch_page(url: str, spool: Spool, max_bytes: int) -> Spooled:
    """The sound of a video page, by yt-dlp in a process of its own. Only for hosts that the operator names."""
    with spool.writer() as writer:
        arguments = (
            "--quiet",
            "--no-playlist",
            "--no-cache-dir",
            "--ies",
            "all,-generic",
            "--format",
            "bestaudio/best",
            "--output",
            "-",
            "--",
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "yt_dlp", *arguments, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout and process.stderr
        try:
            with anyio.fail_after(TOTAL_SECONDS):
                while piece := await process.stdout.read(256 * 1024):
                    writer.add(piece)
                    if writer.size > max_bytes:
                        raise _too_large(max_bytes)
                    await writer.flush()
                reason = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
                if await process.wait() or not writer.size:
                    raise _failed(url, reason[-1] if reason else "yt-dlp found no sound")
        except TimeoutError:
            raise _failed(url, f"it takes longer than {TOTAL_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return await writer.finish()


def _failed(url: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"the recording cannot be fetched from {for_message(url)}: {reason[:300]}", param="url", code="url_failed")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the recording at the URL has more than {limit:,} bytes", param="url")
