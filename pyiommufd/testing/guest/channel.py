"""The host's end of the agent's port: requests out, answers back to whoever asked.

Thread-safe: any thread may ask, one thread reads and hands the answers out.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.inside.agent import CHUNK, decode, encode

Sink = Callable[[bytes], object]


class Request:
    """One request and what has come back for it.

    Args:
        identifier: Its number on the port.
        sinks: Where the payloads of each kind of answer go, as they come.
    """

    def __init__(self, identifier: int, sinks: dict[str, Sink]) -> None:
        self.identifier = identifier
        self.answer: dict[str, Any] | None = None
        self.failure: BaseException | None = None
        self._sinks = sinks
        self._settled = threading.Event()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the final answer, for so many seconds; False where it has not come."""
        return self._settled.wait(timeout)

    def deliver(self, message: dict[str, Any]) -> None:
        """Take one answer in."""
        if message["op"] not in ("stdout", "stderr", "data", "more"):
            self.answer = message
            self._settled.set()
            return
        sink = self._sinks.get(message["op"])
        if sink is None or self.failure is not None:
            return
        try:
            sink(message.get("data", b""))
        except BaseException as error:  # noqa: BLE001,RUF100 - raised again by whoever waits for the request
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the wait with this exception, unless the request has its answer."""
        if self.answer is None and self.failure is None:
            self.failure = error
        self._settled.set()


class Channel:
    """The connection to the agent.

    Args:
        connection: The host's end of the socket that QEMU has as the port's other end.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._requests: dict[int, Request] = {}
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._closed_by: GuestError | None = None
        self.hello: dict[str, Any] | None = None
        self.greeted_at = 0.0
        self.greeted = threading.Event()

    def read(self) -> None:
        """Hand answers out until the guest hangs up; runs in a thread of its own."""
        buffer = bytearray()
        while True:
            try:
                data = self._connection.recv(CHUNK)
            except OSError:
                return
            if not data:
                return
            buffer += data
            while message := decode(buffer):
                self._dispatch(message)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message["op"] == "hello":
            self.hello = message
            self.greeted_at = time.monotonic()
            self.greeted.set()
            return
        with self._lock:
            request = self._requests.get(message["id"])
            if message["op"] in ("exit", "done", "error"):
                self._requests.pop(message["id"], None)
        if request is not None:
            request.deliver(message)

    def ask(self, op: str, *, sinks: dict[str, Sink] | None = None, **arguments: Any) -> Request:
        """Send a request; the caller waits for its answer.

        Raises:
            GuestError: The guest is gone.
        """
        with self._lock:
            if self._closed_by is not None:
                raise self._closed_by
            request = Request(next(self._numbers), sinks or {})
            self._requests[request.identifier] = request
        self.tell(op, request, **arguments)
        return request

    def tell(self, op: str, request: Request, **arguments: Any) -> None:
        """Send what has no answer of its own, about a request."""
        try:
            with self._write_lock:
                self._connection.sendall(encode({"op": op, "id": request.identifier, **arguments}))
        except OSError:
            # The reader sees the same hang-up and knows why; the request ends with its reason.
            pass

    def fail_all(self, error: GuestError) -> None:
        """End every wait with this exception; later requests raise it at once."""
        with self._lock:
            self._closed_by = self._closed_by or error
            requests = list(self._requests.values())
            self._requests.clear()
        for request in requests:
            request.fail(error)
        self.greeted.set()
