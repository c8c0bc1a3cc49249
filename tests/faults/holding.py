"""A proxy as load balancers are: it takes what a client sends, and delivers it when it pleases, even later.

A client that gives up and closes changes nothing: what it sent is on its way. ``TcpProxy`` holds back for
all connections at once; here those that are held are chosen, so that others overtake them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

__all__ = ["HoldingProxy"]


class HoldingProxy:
    """In front of the server on a Unix socket; use it as a context manager."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self._gates: list[threading.Event] = []
        self._threads: list[threading.Thread] = []
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> HoldingProxy:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.deliver()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def hold(self) -> None:
        """Deliver nothing any more of what comes on the connections of now; those to come are not touched."""
        for gate in list(self._gates):
            gate.clear()

    def deliver(self) -> None:
        """Deliver what was held."""
        for gate in list(self._gates):
            gate.set()

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._path)
            gate = threading.Event()
            gate.set()
            self._gates.append(gate)
            self._open += [client, server]
            self._start(self._pump, client, server, gate)
            self._start(self._pump, server, client, None)

    def _pump(self, source: socket.socket, target: socket.socket, gate: threading.Event | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if gate is not None:
                    gate.wait()
                with contextlib.suppress(OSError if gate is None else ()):
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)
