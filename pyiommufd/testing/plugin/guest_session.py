"""The host's half of ``pytest --guest``: which tests run in which guest, and their reports here.

The tests are collected here and grouped by the guest that they want. Each guest runs its tests by a pytest of its
own (`in_guest`), whose reports are passed to the hooks here, as if the tests had run here.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.guest.guest import Guest, console_tail
from pyiommufd.testing.inside import wire
from pyiommufd.testing.option_names import speak_of
from pyiommufd.testing.plugin.configuration import GuestConfiguration
from pyiommufd.testing.plugin.guest_shell import open_shell
from pyiommufd.testing.plugin.inner_pytest import End, InnerPytest
from pyiommufd.testing.plugin.marker import wishes

# How pytest may end after all of its tests: well, with failures, stopped, or without a test.
_ORDERLY = (0, 1, 2, 5)


class GuestSession:
    """Runs the collected tests in guests; a plugin of the host's run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        option = config.getoption
        self.default = GuestConfiguration(
            iommu=option("guest_iommu") or "intel", kernel=option("guest_kernel"), qemu=option("guest_qemu")
        )
        self.timeout: float = option("guest_timeout")
        self.shell: bool = option("guest_shell")
        self.stopped = ""
        speak_of("pytest")
        self._session: pytest.Session | None = None

    @property
    def session(self) -> pytest.Session:
        """The host's session."""
        assert self._session is not None  # noqa: S101 - pytest starts it first
        return self._session

    def pytest_report_header(self) -> str:
        """Say where the tests run."""
        return f"guest: {self.default}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests.

        Raises:
            pytest.Session.Failed: So many tests failed that the rest is not wanted.
            pytest.Session.Interrupted: A plugin wants no more.
        """
        if session.config.option.collectonly or session.testsfailed:
            return None  # pytest's own loop knows what to do
        self._session = session
        for configuration, items in self._groups(session.items).items():
            while items and not self._stopping():
                items = self._run_in_one_guest(configuration, items)
            self._raise_stop()
        return True

    def _groups(self, items: Sequence[pytest.Item]) -> dict[GuestConfiguration, list[pytest.Item]]:
        groups: dict[GuestConfiguration, list[pytest.Item]] = {}
        for item in items:
            try:
                configuration = self.default.changed(wishes(item) or {})
                groups.setdefault(configuration, []).append(item)
            except (ValueError, TypeError) as error:
                raise pytest.UsageError(f"{item.nodeid}: {error}") from None
        return groups

    def _stopping(self) -> str:
        return str(self.session.shouldfail or self.session.shouldstop or self.stopped)

    def _raise_stop(self) -> None:
        if self.session.shouldfail:
            raise self.session.Failed(self.session.shouldfail)
        if reason := self.session.shouldstop or self.stopped:
            raise self.session.Interrupted(reason)

    def _folders(self, items: Sequence[pytest.Item]) -> tuple[Path, list[Path]]:
        """The folder that the tests may write to, and those that the guest must see besides."""
        root, here = self.config.rootpath, self.config.invocation_params.dir
        folder = here if root.is_relative_to(here) else root
        more = {here, *(item.path.parent for item in items)}
        return folder, sorted(path for path in more if not path.is_relative_to(folder))

    def _run_in_one_guest(self, configuration: GuestConfiguration, items: list[pytest.Item]) -> list[pytest.Item]:
        """Run the tests in a new guest; those that are left when it has gone before they had run."""
        folder, read_only = self._folders(items)
        with contextlib.ExitStack() as stack:
            try:
                guest = configuration.guest(folder=folder, read_only=read_only, ports=(wire.PORT,))
                stack.callback(guest.close)
                guest.start()
            except (GuestError, OSError, ValueError) as error:
                for item in items:
                    self._fail(item, "setup", f"the guest ({configuration}) did not start: {error}", _sections(error))
                    if self._stopping():
                        break
                return []
            run = _Run(self, guest, items)
            return run.run()

    def _fail(
        self,
        item: pytest.Item,
        when: Literal["setup", "call", "teardown"],
        reason: str,
        sections: Sequence[tuple[str, str]] = (),
        *,
        started: bool = False,
        seconds: float = 0.0,
    ) -> None:
        """Report a failure that no pytest in a guest could report."""
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=reason,
            when=when,
            sections=sections,
            duration=seconds,
            start=time.time() - seconds,
            stop=time.time(),
        )
        if not started:
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


class _Run:
    """One run of pytest in one guest.

    Args:
        host: The host's session.
        guest: The guest, started.
        items: The tests to run, in order.
    """

    def __init__(self, host: GuestSession, guest: Guest, items: list[pytest.Item]) -> None:
        self.host = host
        self.guest = guest
        self.items = items
        self.left = dict(enumerate(items))
        self.current: int | None = None
        self.phase: Literal["setup", "call", "teardown"] = "setup"
        self.start = 0.0
        self.uncollected: list[tuple[str, bool, str]] = []
        self.stop_sent = False
        config = host.config
        self.inner = InnerPytest(guest, config.invocation_params.args, config.invocation_params.dir, host.timeout)

    def run(self) -> list[pytest.Item]:
        """Run the tests.

        Returns:
            Those that are to run in another guest.
        """
        files = list(dict.fromkeys(str(item.path) for item in self.items))
        for message in self.inner.messages(files, [item.nodeid for item in self.items]):
            getattr(self, f"_on_{message['op']}")(message)
        end = self.inner.end
        assert end is not None  # noqa: S101 - the messages are over
        if self.current is not None:
            self._died(end)
        elif self.left and not self.host._stopping():
            self._ended_between(end)
        elif end.status not in _ORDERLY and not self.stop_sent:
            self.host.session.shouldfail = f"after the last test in the guest: {end}"
        return list(self.left.values())

    def _on_ready(self, message: dict[str, Any]) -> None:
        pass

    def _on_uncollected(self, message: dict[str, Any]) -> None:
        self.uncollected.append((message["nodeid"], message["skipped"], message["reason"]))

    def _on_collected(self, message: dict[str, Any]) -> None:
        for number in message["missing"]:
            item = self.left.pop(number)
            skipped, reason = self._why_uncollected(item)
            if skipped:
                self._skip(item, reason)
            else:
                self.host._fail(item, "setup", f"not collected in the guest:\n{reason}")

    def _why_uncollected(self, item: pytest.Item) -> tuple[bool, str]:
        """Whether the guest skipped the whole of what the test is in, and what it said."""
        for nodeid, skipped, reason in self.uncollected:
            if not nodeid or f"{item.nodeid}/".startswith((f"{nodeid}/", f"{nodeid}::")):
                return skipped, reason
        return False, "collected here, and not in the guest"

    def _skip(self, item: pytest.Item, reason: str) -> None:
        path, line, _ = item.location
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="skipped",
            longrepr=(path, (line or 0) + 1, reason if reason.startswith("Skipped") else f"Skipped: {reason}"),
            when="setup",
        )
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _on_start(self, message: dict[str, Any]) -> None:
        self.current, self.phase, self.start = message["test"], "setup", time.monotonic()
        item = self.items[message["test"]]
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def _on_report(self, message: dict[str, Any]) -> None:
        item = self.items[message["test"]]
        config = self.host.config
        report = config.hook.pytest_report_from_serializable(config=config, data=_as_written(message["report"]))
        if context := message["report"].get("_subtest.context"):
            # Reading it back, pytest 9 puts the values into quotes once more.
            object.__setattr__(report.context, "kwargs", context["kwargs"])
        if report.when != "call" or type(report) is pytest.TestReport:
            self.phase = "call" if report.when == "setup" else "teardown"
        item.ihook.pytest_runtest_logreport(report=report)
        if report.failed:
            if self.host.shell:
                self.host.shell = False
                open_shell(self.guest, config, f"{item.nodeid} failed ({report.when})")
            self._answer()

    def _answer(self) -> None:
        self.stop_sent = self.stop_sent or bool(self.host._stopping())
        self.inner.answer(stop=self.stop_sent)

    def _on_finish(self, message: dict[str, Any]) -> None:
        item = self.left.pop(message["test"])
        self.current = None
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if self.host._stopping() and not self.stop_sent:
            self._answer()

    def _on_warning(self, message: dict[str, Any]) -> None:
        category = _category(*message["category"])
        warning = warnings.WarningMessage(
            message=category(message["text"]),
            category=category,
            filename=message["filename"],
            lineno=message["lineno"],
        )
        location = message["location"]
        self.host.config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": warning,
                "nodeid": message["nodeid"],
                "when": "runtest",
                "location": tuple(location) if location else None,
            }
        )

    def _on_exit(self, message: dict[str, Any]) -> None:
        pytest.exit(message["reason"], message["status"])

    def _on_stopped(self, message: dict[str, Any]) -> None:
        if not self.stop_sent:
            self.host.stopped = message["reason"]

    def _died(self, end: End) -> None:
        """Pytest or the whole guest ended while a test ran."""
        assert self.current is not None  # noqa: S101 - so the caller found
        item = self.left.pop(self.current)
        reason = f"while this test ran in the guest: {end}"
        sections = self._last_words(end)
        self.host._fail(item, self.phase, reason, sections, started=True, seconds=time.monotonic() - self.start)
        if self.host.shell:
            self.host.shell = False
            open_shell(None, self.host.config, f"{item.nodeid}: the guest is gone")

    def _ended_between(self, end: End) -> None:
        """Pytest in the guest ended by itself before all tests had run, and none was running."""
        sections = self._last_words(end)
        begun = len(self.left) < len(self.items)
        for number, item in list(self.left.items()):
            del self.left[number]
            self.host._fail(item, "setup", f"before this test could start in the guest: {end}", sections)
            if begun or self.host._stopping():
                break  # the rest has a chance in a new guest

    def _last_words(self, end: End) -> list[tuple[str, str]]:
        result = []
        if console := end.console or self.guest.console:
            result.append(("Guest console", console_tail(console)))
        if said := bytes(self.inner.stderr).decode(errors="replace").strip():
            result.append(("Guest stderr", said))
        return result


def _sections(error: BaseException) -> list[tuple[str, str]]:
    console = error.console if isinstance(error, GuestError) else ""
    return [("Guest console", console_tail(console))] if console else []


def _as_written(data: dict[str, Any]) -> dict[str, Any]:
    """A serialised report with the tuples that JSON made lists."""
    data["location"] = tuple(data["location"])
    for name in ("sections", "user_properties"):
        if name in data:
            data[name] = [tuple(pair) for pair in data[name]]
    if isinstance(data.get("longrepr"), list):
        data["longrepr"] = tuple(data["longrepr"])
    return data


def _category(module: str, name: str) -> type[Warning]:
    """The class of a warning, or the nearest that exists here."""
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return UserWarning
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
