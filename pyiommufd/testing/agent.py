"""The guest's first process: carries out what the host asks for over a virtio-serial port.

Runs in the guest by the host's own Python, without site packages; imports little, because every module costs
tens of milliseconds on an emulated CPU. Single-threaded, so forking is safe. As process 1 it also reaps
orphans, and when it fails the kernel panics, which is how the host learns of it.

A frame is two big-endian 32-bit lengths, a JSON header and a payload. The host sends ``run``, ``signal``,
``put``, ``get`` and ``shutdown``, each with an ``id`` of its choice; the answers carry the same ``id``:
``stdout``, ``stderr`` and ``data`` with a payload, ``exit``, ``done``, and ``error`` with an errno.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from typing import Any

PORT = "/dev/vport0p1"
BUSYBOX = "/.guest/busybox"
CHUNK = 1 << 16
LARGEST_HEADER = 1 << 24


def encode(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """A frame of the header and the payload."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + len(payload).to_bytes(4, "big") + text + payload


def decode(buffer: bytearray) -> tuple[dict[str, Any], bytes] | None:
    """Take the first frame off the buffer, or None where it is not complete yet.

    Raises:
        ValueError: The buffer does not hold a frame.
    """
    if len(buffer) < 8:
        return None
    header_length = int.from_bytes(buffer[:4], "big")
    payload_end = 8 + header_length + int.from_bytes(buffer[4:8], "big")
    if header_length > LARGEST_HEADER:
        raise ValueError(f"a frame header of {header_length} bytes")
    if len(buffer) < payload_end:
        return None
    header = json.loads(buffer[8 : 8 + header_length])
    if not isinstance(header, dict):
        raise ValueError("a frame header that is no object")
    payload = bytes(buffer[8 + header_length : payload_end])
    del buffer[:payload_end]
    return header, payload


class Command:
    """A process that the host asked for.

    Args:
        identifier: The host's number for it.
        header: The ``run`` header: ``argv``, ``env``, ``cwd`` and, in seconds, ``timeout``.
    """

    def __init__(self, identifier: int, header: dict[str, Any]) -> None:
        self.identifier = identifier
        self.finished = False
        self.timed_out = False
        timeout = header.get("timeout")
        self.deadline = None if timeout is None else time.monotonic() + timeout
        out_read, out_write = os.pipe()
        error_read, error_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _execute(header, out_write, error_write)
        os.close(out_write)
        os.close(error_write)
        self.pipes = {out_read: "stdout", error_read: "stderr"}
        for pipe in self.pipes:
            os.set_blocking(pipe, False)
        self.pidfd = os.pidfd_open(self.pid)

    def kill(self, signal: int) -> None:
        """Send the signal to the whole process group, unless the process is gone."""
        if not self.finished:
            try:
                os.killpg(self.pid, signal)
            except ProcessLookupError:
                os.kill(self.pid, signal)  # it has not made its process group yet


def _execute(header: dict[str, Any], stdout: int, stderr: int) -> None:
    """Become the command; in the forked child, so it never returns."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate((null, stdout, stderr)):
            os.dup2(source, target)
        try:
            os.chdir(header.get("cwd") or "/")
            os.execvpe(header["argv"][0], header["argv"], header["env"])  # noqa: S606 - no shell on purpose
        except OSError as error:
            name = error.filename if isinstance(error.filename, str) else header["argv"][0]
            os.write(2, f"guest: {name}: {error.strerror}\n".encode(errors="surrogateescape"))
            # As shells do: 127 is not found, 126 cannot be executed.
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    finally:
        os._exit(126)


class Agent:
    """Serves one host over one port.

    Args:
        port: The open file descriptor of the port.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.buffer = bytearray()
        self.commands: dict[int, Command] = {}
        self.by_fd: dict[int, Command] = {}
        self.running = True
        self.poll = select.epoll()
        self.poll.register(port, select.EPOLLIN)

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Send one frame; waits while the host does not read."""
        data = memoryview(encode(header, payload))
        while data:
            data = data[os.write(self.port, data) :]

    def serve(self) -> None:
        """Answer the host until it says ``shutdown`` or hangs up."""
        self.send({"op": "hello", "release": os.uname().release, "python": sys.version.split()[0]})
        while self.running:
            for fd, events in self.poll.poll(self._wait_time()):
                if fd == self.port:
                    self._port_ready(events)
                elif fd in self.by_fd:
                    self._command_ready(fd)
            self._reap()
            self._enforce_time_limits()

    def _wait_time(self) -> float:
        deadlines = [c.deadline for c in self.commands.values() if c.deadline is not None and not c.finished]
        # At least once a second, for orphans: nothing announces them.
        return max(0.0, min([1.0, *(deadline - time.monotonic() for deadline in deadlines)]))

    def _port_ready(self, events: int) -> None:
        data = os.read(self.port, CHUNK) if events & select.EPOLLIN else b""
        if not data and events & select.EPOLLHUP:
            self.running = False  # the launcher is gone; nobody would ever read the answers
            return
        self.buffer += data
        while frame := decode(self.buffer):
            header, payload = frame
            try:
                self._handle(header, payload)
            except OSError as error:
                message = error.strerror or str(error)
                self.send({"op": "error", "id": header.get("id"), "errno": error.errno, "message": message})

    def _handle(self, header: dict[str, Any], payload: bytes) -> None:
        identifier = header["id"]
        match header["op"]:
            case "run":
                command = Command(identifier, header)
                self.commands[command.pid] = command
                for fd in (command.pidfd, *command.pipes):
                    self.by_fd[fd] = command
                    self.poll.register(fd, select.EPOLLIN)
            case "signal":
                for command in self.commands.values():
                    if command.identifier == header["target"]:
                        command.kill(header["signal"])
                self.send({"op": "done", "id": identifier})
            case "put":
                self._put(header, payload)
                self.send({"op": "done", "id": identifier})
            case "get":
                self._get(identifier, header["path"])
            case "shutdown":
                os.sync()
                self.send({"op": "done", "id": identifier})
                self.running = False
            case unknown:
                self.send({"op": "error", "id": identifier, "errno": None, "message": f"no command {unknown}"})

    def _put(self, header: dict[str, Any], payload: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if header.get("append") else os.O_TRUNC)
        fd = os.open(header["path"], flags, header.get("mode", 0o644))
        try:
            view = memoryview(payload)
            while view:
                view = view[os.write(fd, view) :]
            if "mode" in header:
                os.fchmod(fd, header["mode"])
        finally:
            os.close(fd)

    def _get(self, identifier: int, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(22, "not a regular file")
            while chunk := os.read(fd, CHUNK):
                self.send({"op": "data", "id": identifier}, chunk)
        finally:
            os.close(fd)
        self.send({"op": "done", "id": identifier})

    def _command_ready(self, fd: int) -> None:
        command = self.by_fd[fd]
        if fd != command.pidfd:
            self._forward(command, fd)

    def _forward(self, command: Command, pipe: int) -> bool:
        """Pass on what the pipe holds; False where it holds nothing more for now."""
        try:
            data = os.read(pipe, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._forget(pipe)
            del command.pipes[pipe]
            return False
        # What a process left behind writes after the command's end is read and dropped: it must not block.
        if not command.finished:
            self.send({"op": command.pipes[pipe], "id": command.identifier}, data)
        return True

    def _forget(self, fd: int) -> None:
        self.poll.unregister(fd)
        del self.by_fd[fd]
        os.close(fd)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if command := self.commands.pop(pid, None):
                self._finish(command, status)

    def _finish(self, command: Command, status: int) -> None:
        for pipe in list(command.pipes):
            while self._forward(command, pipe):
                pass
        self._forget(command.pidfd)
        command.finished = True
        self.send(
            {
                "op": "exit",
                "id": command.identifier,
                "status": os.waitstatus_to_exitcode(status),
                "timed_out": command.timed_out,
            }
        )

    def _enforce_time_limits(self) -> None:
        now = time.monotonic()
        for command in self.commands.values():
            if command.deadline is not None and now >= command.deadline:
                command.timed_out = True
                command.deadline = None
                command.kill(9)


def main() -> None:
    """Serve the host, then turn the machine off."""
    port = os.open(PORT, os.O_RDWR | os.O_CLOEXEC)
    Agent(port).serve()
    os.execv(BUSYBOX, ["poweroff", "-f"])  # noqa: S606 - no shell on purpose


if __name__ == "__main__":
    main()
