"""QEMU's monitor, by QEMU's own client (PyPI ``qemu.qmp``), for callers that are not asynchronous.

The client wants an event loop, which runs in a thread of its own here: any thread may ask.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from pyiommufd.testing.errors import GuestError, GuestMissingError, GuestTimeoutError

_ANSWER_TIME = 30.0

T = TypeVar("T")


class Monitor:
    """A connection to a QEMU's monitor.

    Args:
        connection: A socket whose other end QEMU serves the monitor on; closed by `close`.

    Raises:
        GuestMissingError: The client is not installed.
        GuestError: QEMU does not answer.
    """

    def __init__(self, connection: socket.socket) -> None:
        try:
            from qemu.qmp import QMPClient
        except ImportError:
            raise GuestMissingError(
                "QEMU's monitor needs the package qemu.qmp: pip install pyiommufd[testing]"
            ) from None
        self._events: list[Any] = []
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pyiommufd-monitor", daemon=True)
        self._thread.start()
        self._client = QMPClient("guest")
        self._client.logger.disabled = True  # it reports every hang-up, and a guest's end is one
        try:
            self._wait(self._connect(connection), "greeting")
        except BaseException:
            self.close()
            raise

    async def _connect(self, connection: socket.socket) -> None:
        from qemu.qmp import EventListener

        listener = EventListener()
        self._client.register_listener(listener)
        connection.setblocking(False)
        await self._client.connect(connection)
        self._collector = asyncio.ensure_future(self._collect(listener))

    async def _collect(self, listener: Any) -> None:
        async for event in listener:
            with self._news:
                self._events.append(event)
                self._news.notify_all()

    def _wait(self, work: Coroutine[Any, Any, T], what: str) -> T:
        from qemu.qmp import ExecuteError, QMPError

        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(_ANSWER_TIME)
        except ExecuteError as error:
            raise GuestError(f"QEMU refuses {what}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            if isinstance(error, TimeoutError):
                future.cancel()
                raise GuestTimeoutError(f"QEMU's monitor does not answer {what}") from error
            raise GuestError(f"QEMU's monitor: {what}: {error}") from error

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """Run a command.

        Returns:
            What it returns.

        Raises:
            GuestError: QEMU refused, or is gone.
        """
        return self._wait(self._client.execute(command, arguments or None), command)

    def human(self, line: str) -> str:
        """Run a command of the human monitor, such as ``info mtree``; what it prints."""
        return str(self.execute("human-monitor-command", {"command-line": line}))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The data of all events of that name so far."""
        with self._news:
            found = [event for event in self._events if event["event"] == name]
        return [dict(event.get("data", {})) for event in found]

    def wait_event(self, name: str, timeout: float, **data: Any) -> None:
        """Wait until an event of that name with this data has come; those of the past count.

        Raises:
            GuestTimeoutError: None has come in so many seconds.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while not any(_matches(event, name, data) for event in self._events):
                if not self._news.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise GuestTimeoutError(f"no {name} of {data} within {timeout:g} s")

    def forget(self, name: str, **data: Any) -> None:
        """Forget past events, so that `wait_event` waits for a new one."""
        with self._news:
            self._events = [event for event in self._events if not _matches(event, name, data)]

    def close(self) -> None:
        """Hang up; once is enough."""
        if self._loop.is_closed():
            return

        async def end() -> None:
            try:
                await self._client.disconnect()
            finally:
                others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)

        future = asyncio.run_coroutine_threadsafe(end(), self._loop)
        try:
            future.exception(_ANSWER_TIME)  # a connection that QEMU's end broke says so here; it is over all the same
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def _matches(event: Any, name: str, data: dict[str, Any]) -> bool:
    return event["event"] == name and all(event.get("data", {}).get(key) == value for key, value in data.items())
