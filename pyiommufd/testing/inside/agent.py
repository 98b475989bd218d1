"""The guest's first process: carries out what the host asks for over a virtio-serial port.

Runs in the guest by the host's own Python, without site packages; imports little, because every module costs
tens of milliseconds on an emulated CPU. Single-threaded, so forking is safe. As process 1 it also reaps
orphans, and when it fails the kernel panics, which is how the host learns of it.

A frame is a big-endian 32-bit length and one dictionary of scalars, lists and dictionaries, in an encoding of
our own: importing json would take a sixth of the whole boot, and marshal is not safe for the host to read. The
host sends ``run``, ``signal``, ``put``, ``get`` and ``shutdown``, each with an ``id`` of its choice; the answers
carry the same ``id``: ``stdout``, ``stderr`` and ``data``, which are pieces, and ``exit``, ``done`` or ``error``,
which end it. A ``run`` that has standard input is also answered by ``more`` each time that the command can take a
piece; the host then sends one as ``input``, empty at the end, and never another before the next ``more``. This and
``resize``, of a command's terminal, carry the ``id`` of the ``run`` and have no answer.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal is made of, which is slow to import
import os
import select
import stat
import sys
import time

TYPE_CHECKING = False  # importing typing is as slow as json; type checkers take this name for true
if TYPE_CHECKING:
    from typing import Any

PORTS = "/sys/class/virtio-ports"
PORT_NAME = "pyiommufd.agent"
BUSYBOX = "/.guest/busybox"
CHUNK = 1 << 16
LARGEST_FRAME = 1 << 26


def encode(message: dict[str, Any]) -> bytes:
    """A frame that holds the message: None, bool, int, str, bytes, and lists and dictionaries of these."""
    parts: list[bytes] = []
    _encode_value(message, parts)
    body = b"".join(parts)
    return len(body).to_bytes(4, "big") + body


def _encode_value(value: Any, parts: list[bytes]) -> None:
    if value is None:
        parts.append(b"n")
    elif isinstance(value, int):
        parts.append(b"%s%d;" % (b"t" if isinstance(value, bool) else b"i", value))
    elif isinstance(value, bytes):
        parts += (b"b%d;" % len(value), value)
    elif isinstance(value, str):
        # Arguments and paths may hold bytes that are no UTF-8; os hands them out escaped.
        text = value.encode("utf-8", "surrogateescape")
        parts += (b"s%d;" % len(text), text)
    elif isinstance(value, dict):
        parts.append(b"d%d;" % len(value))
        for key, item in value.items():
            _encode_value(key, parts)
            _encode_value(item, parts)
    elif isinstance(value, list):
        parts.append(b"l%d;" % len(value))
        for item in value:
            _encode_value(item, parts)
    else:
        raise TypeError(f"cannot send a {type(value).__name__}")


def decode(buffer: bytearray) -> dict[str, Any] | None:
    """Take the first message off the buffer, or None where it is not complete yet.

    `wire.decode` does the same for JSON. The code is there twice, as this module imports nothing of ours, and `wire`
    must not load this one.

    Raises:
        ValueError: The buffer does not hold a frame.
    """
    if len(buffer) < 4:
        return None
    end = 4 + int.from_bytes(buffer[:4], "big")
    if end > LARGEST_FRAME:
        raise ValueError(f"a frame of {end} bytes")
    if len(buffer) < end:
        return None
    body = bytes(buffer[4:end])
    del buffer[:end]
    message, rest = _decode_value(body, 0, 0)
    if rest != len(body) or not isinstance(message, dict):
        raise ValueError("a frame that holds no message")
    return message


def _decode_value(body: bytes, start: int, depth: int) -> tuple[Any, int]:
    """The value that starts there, and where the next one does."""
    kind = body[start : start + 1]
    if kind == b"n":
        return None, start + 1
    end = body.index(b";", start)
    number, start = int(body[start + 1 : end]), end + 1
    if kind in b"it":
        return (bool(number) if kind == b"t" else number), start
    if number < 0 or number > len(body) - start or depth > 8:
        raise ValueError("a value that does not fit its frame")
    if kind in b"sb":
        data = body[start : start + number]
        return (data if kind == b"b" else data.decode("utf-8", "surrogateescape")), start + number
    if kind not in b"dl":
        raise ValueError(f"no value starts with {kind!r}")
    items = []
    for _ in range(number * (2 if kind == b"d" else 1)):
        item, start = _decode_value(body, start, depth + 1)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == b"d" else items), start


class Command:
    """A process that the host asked for.

    Args:
        identifier: The host's number for it.
        message: The ``run``: ``argv``, ``env``, ``cwd`` and, in milliseconds, ``timeout``; ``input``, whether it has
            standard input, or ``terminal``, the lines and columns of the one that it is to run on.
    """

    def __init__(self, identifier: int, message: dict[str, Any]) -> None:
        self.identifier = identifier
        self.finished = False
        self.timed_out = False
        timeout = message.get("timeout")
        self.deadline: float | None = None if timeout is None else time.monotonic() + timeout / 1000
        self.terminal: bool = "terminal" in message
        self.input: int | None = None
        """Where its standard input is written to, until that is closed."""
        self.unwritten = memoryview(b"")
        if self.terminal:
            theirs = self._open_terminal(message["terminal"])
        else:
            theirs = self._open_pipes(bool(message.get("input")))
        self.pid = os.fork()
        if self.pid == 0:
            _execute(message, theirs)
        for fd in theirs:
            os.close(fd)
        for pipe in self.pipes:
            os.set_blocking(pipe, False)
        self.pidfd = os.pidfd_open(self.pid)

    def _open_terminal(self, size: list[int]) -> list[int]:
        terminal, theirs = os.openpty()
        self.pipes = {terminal: "stdout"}
        self.input = os.dup(terminal)  # to be polled by itself; O_NONBLOCK is that of both
        self.resize(size)
        return [theirs]

    def _open_pipes(self, with_input: bool) -> list[int]:
        if with_input:
            in_read, self.input = os.pipe()
            os.set_blocking(self.input, False)
        else:
            in_read = os.open(os.devnull, os.O_RDONLY)
        out_read, out_write = os.pipe()
        error_read, error_write = os.pipe()
        self.pipes = {out_read: "stdout", error_read: "stderr"}
        return [in_read, out_write, error_write]

    def resize(self, size: list[int]) -> None:
        """Give its terminal so many lines and columns."""
        import termios  # which few commands need

        if self.input is not None:
            termios.tcsetwinsize(self.input, (size[0], size[1]))

    def kill(self, signal: int) -> None:
        """Send the signal to the whole process group, unless the process is gone."""
        if not self.finished:
            try:
                os.killpg(self.pid, signal)
            except ProcessLookupError:
                os.kill(self.pid, signal)  # it has not made its process group yet


def _execute(message: dict[str, Any], fds: list[int]) -> None:
    """Become the command, with these standard streams or this one terminal; in the forked child: it never returns."""
    try:
        if len(fds) == 1:
            os.login_tty(fds[0])
        else:
            os.setsid()
            for target, source in enumerate(fds):
                os.dup2(source, target)
        # Python ignores these, and a program that ignores them from its start cannot know that it should not.
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        try:
            os.chdir(message.get("cwd") or "/")
            os.execvpe(message["argv"][0], message["argv"], message["env"])  # noqa: S606 - no shell on purpose
        except OSError as error:
            name = error.filename if isinstance(error.filename, str) else message["argv"][0]
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

    def send(self, **message: Any) -> None:
        """Send one frame; waits while the host does not read."""
        data = memoryview(encode(message))
        while data:
            data = data[os.write(self.port, data) :]

    def serve(self) -> None:
        """Answer the host until it says ``shutdown`` or hangs up."""
        up = int(time.monotonic() * 1000)  # milliseconds since the boot, by the guest's clock
        self.send(op="hello", release=os.uname().release, python=sys.version.split()[0], up=up)
        while self.running:
            for fd, events in self.poll.poll(self._wait_time()):
                if fd == self.port:
                    self._port_ready(events)
                elif fd in self.by_fd:
                    self._command_ready(fd)
            self._reap()
            self._enforce_time_limits()

    def _wait_time(self) -> float:
        wait = 1.0  # at most, for orphans: nothing announces them
        for command in self.commands.values():
            if command.deadline is not None:
                wait = min(wait, command.deadline - time.monotonic())
        return max(0.0, wait)

    def _port_ready(self, events: int) -> None:
        data = os.read(self.port, CHUNK) if events & select.EPOLLIN else b""
        if not data and events & select.EPOLLHUP:
            self.running = False  # the launcher is gone; nobody would ever read the answers
            return
        self.buffer += data
        while message := decode(self.buffer):
            try:
                self._handle(message)
            except OSError as error:
                reason = error.strerror or str(error)
                self.send(op="error", id=message["id"], errno=error.errno, reason=reason)

    def _handle(self, message: dict[str, Any]) -> None:
        identifier = message["id"]
        match message["op"]:
            case "run":
                command = Command(identifier, message)
                self.commands[command.pid] = command
                for fd in (command.pidfd, *command.pipes):
                    self.by_fd[fd] = command
                    self.poll.register(fd, select.EPOLLIN)
                if command.input is not None:
                    self.send(op="more", id=identifier)
            case "input":
                if (of := self._command_of(identifier)) is not None:
                    self._take_input(of, message["data"])
            case "resize":
                if (of := self._command_of(identifier)) is not None:
                    of.resize(message["size"])
            case "signal":
                if (of := self._command_of(message["target"])) is not None:
                    of.kill(message["signal"])
                self.send(op="done", id=identifier)
            case "put":
                self._put(message)
                self.send(op="done", id=identifier)
            case "get":
                self._get(identifier, message["path"])
            case "shutdown":
                os.sync()
                self.send(op="done", id=identifier)
                self.running = False
            case unknown:
                self.send(op="error", id=identifier, errno=None, reason=f"no command {unknown}")

    def _command_of(self, identifier: int) -> Command | None:
        return next((one for one in self.commands.values() if one.identifier == identifier), None)

    def _take_input(self, command: Command, data: bytes) -> None:
        if command.input is None:
            return  # it has closed its standard input since the host was asked
        if data:
            command.unwritten = memoryview(data)
            self.by_fd[command.input] = command
            self.poll.register(command.input, select.EPOLLOUT)
        elif command.terminal:
            command.kill(_signal.SIGHUP)  # the user's terminal is gone
        else:
            self._close_input(command)

    def _write_input(self, command: Command, fd: int) -> None:
        try:
            command.unwritten = command.unwritten[os.write(fd, command.unwritten) :]
        except BlockingIOError:
            return
        except OSError:
            self._close_input(command)  # nobody reads it any more
            return
        if not command.unwritten:
            # Where nothing is to be written, a reader that goes would be reported again and again.
            self.poll.unregister(fd)
            del self.by_fd[fd]
            self.send(op="more", id=command.identifier)

    def _close_input(self, command: Command) -> None:
        fd, command.input = command.input, None
        if fd is None:
            return
        if self.by_fd.pop(fd, None) is not None:
            self.poll.unregister(fd)
        os.close(fd)

    def _put(self, message: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if message.get("append") else os.O_TRUNC)
        fd = os.open(message["path"], flags, message.get("mode", 0o644))
        try:
            view = memoryview(message["data"])
            while view:
                view = view[os.write(fd, view) :]
            if "mode" in message:
                os.fchmod(fd, message["mode"])
        finally:
            os.close(fd)

    def _get(self, identifier: int, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(22, "not a regular file")
            while chunk := os.read(fd, CHUNK):
                self.send(op="data", id=identifier, data=chunk)
        finally:
            os.close(fd)
        self.send(op="done", id=identifier)

    def _command_ready(self, fd: int) -> None:
        command = self.by_fd[fd]
        if fd == command.input:
            self._write_input(command, fd)
        elif fd != command.pidfd:
            self._forward(command, fd)

    def _forward(self, command: Command, pipe: int) -> bool:
        """Pass on what the pipe holds; False where it holds nothing more for now."""
        try:
            data = os.read(pipe, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # a terminal that nobody has open any more says EIO
        if not data:
            self._forget(pipe)
            del command.pipes[pipe]
            return False
        # What a process left behind writes after the command's end is read and dropped: it must not block.
        if not command.finished:
            self.send(op=command.pipes[pipe], id=command.identifier, data=data)
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
        self._close_input(command)
        self._forget(command.pidfd)
        command.finished = True
        code = os.waitstatus_to_exitcode(status)
        self.send(op="exit", id=command.identifier, status=code, timed_out=command.timed_out)

    def _enforce_time_limits(self) -> None:
        now = time.monotonic()
        for command in self.commands.values():
            if command.deadline is not None and now >= command.deadline:
                command.timed_out = True
                command.deadline = None
                command.kill(9)


def _open_port() -> int:
    """The port of our name: its number depends on what other virtio devices there are."""
    # It is announced after its controller, so it may come a little later than this process.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for port in os.listdir(PORTS) if os.path.isdir(PORTS) else ():  # noqa: PTH112,PTH208 - pathlib is slow to import
            with open(f"{PORTS}/{port}/name") as name:
                if name.read().strip() == PORT_NAME:
                    return os.open(f"/dev/{port}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.01)
    raise FileNotFoundError(f"no virtio port {PORT_NAME}")


def main() -> None:
    """Serve the host, then turn the machine off."""
    Agent(_open_port()).serve()
    os.execv(BUSYBOX, ["poweroff", "-f"])  # noqa: S606 - no shell on purpose


if __name__ == "__main__":
    main()
