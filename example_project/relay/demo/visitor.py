"""A visitor without a browser: asks for pages, keeps cookies, sends forms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.cookies import SimpleCookie
from time import perf_counter
from typing import Any
from urllib.parse import urlencode, urlsplit

TIMEOUT = 10.0
"""Seconds that the visitor waits for a page."""

FORM = "application/x-www-form-urlencoded"
BOUNDARY = "relay-visitor"
TIMING = re.compile(r'(\w+);dur=[\d.]+;desc="(\d+)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    path: str
    status: int
    ms: float
    sources: Mapping[str, int]
    """How many of the page's cache operations each source answered."""
    headers: Mapping[str, str]
    text: str

    @property
    def decision(self) -> Mapping[str, Any]:
        """What a limit decided; empty where none was asked."""
        told: Mapping[str, Any] | None = json.loads(self.headers.get("X-Relay-Decision", "{}"))
        return told or {}

    def json(self) -> Any:
        """Return the answer as the JSON it is."""
        return json.loads(self.text)


class Visitor:
    """One visitor of one site, who prefers ``accept``, or a program that shows ``authorization``.

    Not thread-safe: people read one page at a time.
    """

    def __init__(self, url: str, *, accept: str = "*/*", authorization: str = "") -> None:
        self._accept = accept
        self._authorization = authorization
        self._host = urlsplit(url).netloc
        self._cookies: dict[str, str] = {}

    def get(self, path: str) -> Answer:
        """Ask for a page."""
        return self._ask("GET", path)

    def post(self, path: str, **fields: str) -> Answer:
        """Send a form; the cookie that any page with a form has set must be there."""
        return self._ask("POST", path, urlencode(fields))

    def upload(self, path: str, name: str, text: str) -> Answer:
        """Send a text file, in the field ``file``."""
        head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain'
        body = f"--{BOUNDARY}\r\n{head}\r\n\r\n{text}\r\n--{BOUNDARY}--\r\n"
        return self._ask("POST", path, body, f"multipart/form-data; boundary={BOUNDARY}")

    def _ask(self, method: str, path: str, body: str | None = None, kind: str = FORM) -> Answer:
        connection = HTTPConnection(self._host, timeout=TIMEOUT)
        started = perf_counter()
        try:
            connection.request(method, path, body, self._headers(body, kind))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        self._remember(response)
        sources = {
            name: int(count) for name, count in TIMING.findall(response.headers.get("Server-Timing", ""))
        }
        return Answer(
            path=path,
            status=response.status,
            ms=(perf_counter() - started) * 1000,
            sources=sources,
            headers=dict(response.headers.items()),
            text=text,
        )

    def _headers(self, body: str | None, kind: str) -> dict[str, str]:
        headers = {
            "Accept": self._accept,
            "Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items()),
        }
        if self._authorization:
            headers["Authorization"] = self._authorization
        if body is not None:
            headers["Content-Type"] = kind
            headers["X-CSRFToken"] = self._cookies.get("csrftoken", "")
        return headers

    def _remember(self, response: HTTPResponse) -> None:
        for line in response.headers.get_all("Set-Cookie") or []:
            for name, morsel in SimpleCookie(line).items():
                self._cookies[name] = morsel.value
