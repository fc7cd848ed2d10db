"""The routes of the page: what is served, under which policy, and what a browser may keep."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from gateway.page import routes


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(routes.router)
    return TestClient(app, raise_server_exceptions=False)


def test_the_policy_allows_nothing_from_elsewhere(client: TestClient) -> None:
    reply = client.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(directive.split(" ", 1) for directive in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    assert not re.search(r"unsafe|\*|https?:|data:", reply.headers["content-security-policy"])
    assert not re.search(r"<script[^>]*>[^<]|<style|\sstyle=|\son\w+=", reply.text), "inline code would need a weaker policy"
    addresses = re.findall(r'(?:src|href)="([^"]*)"', reply.text)
    assert len(addresses) >= 4 and all(address.startswith("page/") for address in addresses)


def test_every_file_of_the_page_is_served(client: TestClient) -> None:
    files = [path for path in routes.FOLDER.iterdir() if path.suffix in routes.TYPES]
    assert len(files) >= 15
    for path in files:
        reply = client.get(f"/page/{path.name}")
        assert reply.content == path.read_bytes()
        assert reply.headers["content-type"] == f"{routes.TYPES[path.suffix]}; charset=utf-8"


@pytest.mark.parametrize("name", ["routes.py", "index.html", "missing.js", "..%2Fapp.py", "__pycache__"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code >= 400


@pytest.mark.parametrize("path", ["/", "/page/page.js"])
def test_a_browser_asks_whether_its_copy_is_current(client: TestClient, path: str) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get(path, headers={"if-none-match": '"another"'}).status_code == 200


def test_the_address_on_the_page_is_escaped(client: TestClient) -> None:
    assert "http://testserver/predictions/whisper" in client.get("/").text
    hostile = client.get("/", headers={"host": '"><script>alert(1)</script>'})
    assert "<script>alert" not in hostile.text


def test_the_languages_are_whispers(client: TestClient) -> None:
    options = dict(re.findall(r'<option value="(\w+)">([^<]*)</option>', client.get("/").text))
    assert options["en"] == "English" and options["yue"] == "Cantonese" and len(options) > 100
