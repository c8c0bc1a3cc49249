"""Serves the site from a thread of this process, on loopback."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

HOST = "127.0.0.1"


class SiteServer:
    """Django's threaded WSGI server, listening from construction on; a context manager.

    ``port`` 0 takes a free one.

    Raises:
        OSError: somebody else has the port.
    """

    def __init__(self, port: int) -> None:
        # A page that polls once a second, or hammers, would fill the terminal; what goes wrong is still said.
        for name in ("django.server", "django.request"):  # the latter says each 429
            logging.getLogger(name).setLevel(logging.ERROR)
            logging.getLogger(name).addFilter(_is_worth_saying)
        self._httpd = ThreadedWSGIServer((HOST, port), WSGIRequestHandler)
        self._httpd.set_app(StaticFilesHandler(WSGIHandler()))
        self._thread = threading.Thread(
            target=self._httpd.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._httpd.server_port)

    @property
    def url(self) -> str:
        """The address of the home page, without the last slash."""
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Whether it is no 503: that is what a page answers for a store that is away, which said so itself."""
    return getattr(record, "status_code", None) != 503
