"""The host's half of ``pytest --guest``: which tests run in which guest, and their reports here.

The tests are collected here and grouped by the guest that they want. Each guest runs its tests by a pytest of its
own (`in_guest`), whose reports are passed to the hooks here, as if the tests had run here.

With pytest-xdist each worker has a guest of its own, in which it runs the tests as they are handed to it.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from pyiommufd.printable import counted
from pyiommufd.testing.errors import GuestError
from pyiommufd.testing.guest.guest import Guest, console_tail
from pyiommufd.testing.guest.machine import default_iommu
from pyiommufd.testing.inside import wire
from pyiommufd.testing.option_names import speak_of
from pyiommufd.testing.plugin.configuration import GuestConfiguration
from pyiommufd.testing.plugin.guest_coverage import GuestCoverage
from pyiommufd.testing.plugin.guest_shell import open_shell
from pyiommufd.testing.plugin.inner_pytest import End, InnerPytest
from pyiommufd.testing.plugin.marker import wishes

# A test's node id as it was collected: with --dist=loadgroup pytest-xdist appends the group's name.
_NODE_ID = pytest.StashKey[str]()

# Why a test fails that pytest in a guest has not begun, with sections of its report.
_Reason = tuple[str, list[tuple[str, str]]]

# What errors name: see `option_name`.
_NAMED = ("kernel", "qemu", "iommu")

# How pytest may end after all of its tests: well, with failures, stopped, or without a test.
_ORDERLY = (0, 1, 2, 5)


class _GuestTests:
    """What runs tests in guests; a plugin of the host's run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        option = config.getoption
        self.default = GuestConfiguration(
            iommu=option("guest_iommu") or default_iommu(), kernel=option("guest_kernel"), qemu=option("guest_qemu")
        )
        self.timeout: float = option("guest_timeout") or 600.0
        self.shell: bool = option("guest_shell")
        self.coverage = GuestCoverage(config)
        self._session: pytest.Session | None = None

    @property
    def session(self) -> pytest.Session:
        """The host's session."""
        assert self._session is not None  # noqa: S101 - pytest starts it first
        return self._session

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember what may be stopped."""
        self._session = session

    def pytest_report_header(self) -> str:
        """Say where the tests run."""
        return f"guest: {self.default}"

    def _groups(
        self, items: Sequence[pytest.Item]
    ) -> tuple[dict[GuestConfiguration, list[pytest.Item]], dict[pytest.Item, str]]:
        """The tests by the guest that they want, and what is wrong with the markers of others."""
        groups: dict[GuestConfiguration, list[pytest.Item]] = {}
        wrong: dict[pytest.Item, str] = {}
        for item in items:
            try:
                configuration = self.default.changed(wishes(item) or {})
                groups.setdefault(configuration, []).append(item)
            except (ValueError, TypeError) as error:
                wrong[item] = f"{item.nodeid}: {error}"
            except pytest.UsageError as error:
                wrong[item] = str(error)
        return groups, wrong

    def _stopping(self) -> bool:
        return bool(self.session.shouldfail or self.session.shouldstop)

    def _raise_stop(self) -> None:
        if self.session.shouldfail:
            raise self.session.Failed(self.session.shouldfail)
        if self.session.shouldstop:
            raise self.session.Interrupted(self.session.shouldstop)

    def _folders(self, items: Sequence[pytest.Item]) -> tuple[Path, list[Path]]:
        """The folder that the tests may write to, and those that the guest must see besides."""
        root, here = self.config.rootpath, self.config.invocation_params.dir
        folder = here if root.is_relative_to(here) else root
        more = {here, *(item.path.parent for item in items)}
        return folder, sorted(path for path in more if not path.is_relative_to(folder))

    def _start(self, stack: contextlib.ExitStack, configuration: GuestConfiguration, items: list[pytest.Item]) -> Guest:
        """A new guest for the tests, running; it ends with the stack.

        Raises:
            GuestError, OSError, ValueError: It did not start.
        """
        folder, read_only = self._folders(items)
        # What differs from the options, a marker has asked for.
        speak_of("pytest", [name for name in _NAMED if getattr(configuration, name) != getattr(self.default, name)])
        guest = configuration.guest(folder=folder, read_only=read_only, ports=(wire.PORT,))
        stack.callback(guest.close)
        say_booting(self.config, f"a guest ({configuration})")
        guest.start()
        return guest

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


class GuestSession(_GuestTests):
    """Runs the collected tests in guests."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests.

        Raises:
            pytest.Session.Failed: So many tests failed that the rest is not wanted.
            pytest.Session.Interrupted: A plugin wants no more.
            pytest.UsageError: A marker is wrong.
        """
        if session.config.option.collectonly or session.testsfailed:
            return None  # pytest's own loop knows what to do
        groups, wrong = self._groups(session.items)
        for reason in wrong.values():
            raise pytest.UsageError(reason)
        for configuration, items in groups.items():
            while items and not self._stopping():
                items = self._run_in_one_guest(configuration, items)
            self._raise_stop()
        return True

    def _run_in_one_guest(self, configuration: GuestConfiguration, items: list[pytest.Item]) -> list[pytest.Item]:
        """Run the tests in a new guest; those that are left when it has gone before they had run."""
        with contextlib.ExitStack() as stack:
            try:
                guest = self._start(stack, configuration, items)
            except (GuestError, OSError, ValueError) as error:
                for item in items:
                    self._fail(item, "setup", *_why_unstarted(configuration, error))
                    if self._stopping():
                        break
                return []
            return _Run(self, guest, items).run()


class GuestController:
    """With ``--guest``, the process of pytest-xdist that hands the tests to its workers."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_sessionstart(self) -> None:
        """Say what the workers are about to do: they have no terminal."""
        say_booting(self.config, "a guest for each worker")


class GuestWorker(_GuestTests):
    """With ``--guest``, a worker of pytest-xdist: which tests it is to run it hears one after the other."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config)
        self._stack = contextlib.ExitStack()
        self._wanted: dict[pytest.Item, GuestConfiguration] = {}
        self._wrong: dict[pytest.Item, str] = {}
        self._hopeless: dict[GuestConfiguration, _Reason] = {}
        self._configuration: GuestConfiguration | None = None
        self._run: _Run | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        """Put the tests that want the same guest together, as without workers."""
        for item in items:
            item.stash[_NODE_ID] = item.nodeid
        yield
        groups, self._wrong = self._groups(items)
        for configuration, together in groups.items():
            self._wanted |= dict.fromkeys(together, configuration)
        items[:] = [*self._wanted, *self._wrong]

    # Within the wrapper of pytest-cov, which collects the coverage when the loop is over.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self) -> Generator[None, bool, bool]:
        """End the guest with the last test."""
        with self._stack:
            result = yield
            self._end()
            return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test in the guest."""
        if item in self._wrong:  # raised while collecting, it would be an internal error of the worker
            self._fail(item, "setup", self._wrong[item])
            return True
        configuration = self._wanted[item]
        if configuration in self._hopeless:
            self._fail(item, "setup", *self._hopeless[configuration])
            return True
        if self._configuration != configuration:
            self._end()
        if self._run is None:
            items = [each for each, wanted in self._wanted.items() if wanted == configuration]
            try:
                guest = self._start(self._stack, configuration, items)
            except (GuestError, OSError, ValueError) as error:
                self._stack.close()
                self._hopeless[configuration] = _why_unstarted(configuration, error)
                self._fail(item, "setup", *self._hopeless[configuration])
                return True
            self._run = _Run(self, guest, items, one_by_one=True)
            self._configuration = configuration
        if not self._run.run_one(item, nextitem):
            if self._run.hopeless:
                self._hopeless[configuration] = self._run.hopeless
            self._run = None
            self._stack.close()
        return True

    def _end(self) -> None:
        """Let pytest in the guest, if there is one, come to its end."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()
        self._stack.close()


class _Run:
    """One run of pytest in one guest.

    Args:
        host: The host's session.
        guest: The guest, started.
        items: The tests to run, in order.
        one_by_one: Run those only that `run_one` is called with.
    """

    def __init__(self, host: _GuestTests, guest: Guest, items: list[pytest.Item], *, one_by_one: bool = False) -> None:
        self.host = host
        self.guest = guest
        self.items = items
        self.left = dict(enumerate(items))
        self.current: int | None = None
        self.phase: Literal["setup", "call", "teardown"] = "setup"
        self.start = 0.0
        self.begun = 0
        self.missing: list[int] | None = None
        self.uncollected: list[tuple[str, bool, str]] = []
        self.stop_sent = False
        self.hopeless: _Reason | None = None
        """Why no test could start, in this guest or another."""
        config = host.config
        arguments, folder = [str(each) for each in config.invocation_params.args], config.invocation_params.dir
        self.inner = InnerPytest(guest, arguments, folder, host.timeout, host.coverage.environment)
        self.one_by_one = one_by_one
        self.covered = False
        files = list(dict.fromkeys(str(item.path) for item in items))
        tests = [item.stash.get(_NODE_ID, item.nodeid) for item in items]
        self.messages = self.inner.messages(files, tests, one_by_one=one_by_one)

    def run(self) -> list[pytest.Item]:
        """Run the tests.

        Returns:
            Those that are to run in another guest.
        """
        while self._step():
            pass
        end = self.inner.end
        assert end is not None  # noqa: S101 - the messages are over
        if self.current is not None:
            self._died(end)
        elif self.left and not self.host._stopping():
            self._ended_between(end)
        else:
            self._check_end(end)
        self._say_uncovered()
        return list(self.left.values())

    def run_one(self, item: pytest.Item, following: pytest.Item | None) -> bool:
        """Run one of the tests.

        Returns:
            Whether more can be run in this guest.
        """
        number = self.items.index(item)
        while self.missing is None and self._step():
            pass
        if self.missing is not None and number in self.missing:
            self._report_missing(number)
            return True
        if self.missing is not None:
            self.inner.run(number, self.items.index(following) if following in self.items else None)
        while number in self.left and self._step():
            pass
        if number not in self.left:
            return True
        end = self.inner.end
        assert end is not None  # noqa: S101 - there are no more messages
        if self.current is not None:
            self._died(end)
        elif not self.host._stopping():
            if len(self.left) == len(self.items):
                self.hopeless = self._why_unbegun(end)
            self._fail_unbegun(number, end)
        self._say_uncovered()
        return False

    def finish(self) -> None:
        """After the last `run_one`: let pytest in the guest end."""
        self.inner.finish()
        while self._step():
            pass
        assert self.inner.end is not None  # noqa: S101 - there are no more messages
        self._check_end(self.inner.end)
        self._say_uncovered()

    def _step(self) -> bool:
        """Deal with the next message; False when there is none any more."""
        message = next(self.messages, None)
        if message is not None:
            getattr(self, f"_on_{message['op']}")(message)
        return message is not None

    def _check_end(self, end: End) -> None:
        if end.status not in _ORDERLY and not self.stop_sent:
            self.host.session.shouldfail = f"after the last test in the guest: {end}"

    def _say_uncovered(self) -> None:
        """Warn where the guest ended before it could send what its tests covered."""
        if self.host.coverage.measures and self.begun and not self.covered and not self.stop_sent:
            text = f"the guest ended early: the coverage of {counted(self.begun, 'test')} is lost"
            self._warn(pytest.PytestWarning(text), "", str(self.items[0].path), 0)

    def _on_ready(self, message: dict[str, Any]) -> None:
        pass

    def _on_uncollected(self, message: dict[str, Any]) -> None:
        self.uncollected.append((message["nodeid"], message["skipped"], message["reason"]))

    def _on_collected(self, message: dict[str, Any]) -> None:
        self.missing = message["missing"]
        for number in () if self.one_by_one else self.missing:
            self._report_missing(number)

    def _report_missing(self, number: int) -> None:
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
        self.begun += 1
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
        report.nodeid = item.nodeid
        item.ihook.pytest_runtest_logreport(report=report)
        if report.failed:
            if self.host.shell:
                self.host.shell = False
                open_shell(self.guest, config, f"{item.nodeid} failed ({report.when})")
            self._answer()

    def _answer(self) -> None:
        self.stop_sent = self.stop_sent or self.host._stopping()
        self.inner.answer(stop=self.stop_sent)

    def _on_finish(self, message: dict[str, Any]) -> None:
        item = self.left.pop(message["test"])
        self.current = None
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if self.host._stopping() and not self.stop_sent:
            self._answer()

    def _on_warning(self, message: dict[str, Any]) -> None:
        warning = _category(*message["category"])(message["text"])
        self._warn(warning, message["nodeid"], message["filename"], message["lineno"], message["location"])

    def _warn(
        self, warning: Warning, nodeid: str, filename: str, lineno: int, location: Sequence[Any] | None = None
    ) -> None:
        """Pass a warning to the hooks here, whatever the filters make of it: those of the guest have seen to that."""
        message = warnings.WarningMessage(
            message=warning, category=type(warning), filename=filename, lineno=lineno, line=None if lineno else ""
        )
        self.host.config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": message,
                "nodeid": nodeid,
                "when": "runtest",
                "location": tuple(location) if location else None,
            }
        )

    def _on_coverage(self, message: dict[str, Any]) -> None:
        self.covered = True
        if self.host.coverage.measures:
            try:
                self.host.coverage.add(message)
            except ValueError as error:
                self._warn(pytest.PytestWarning(f"{error}: it is lost"), "", str(self.items[0].path), 0)

    def _on_exit(self, message: dict[str, Any]) -> None:
        pytest.exit(message["reason"], message["status"])

    def _on_stopped(self, message: dict[str, Any]) -> None:
        if not self.stop_sent:
            self.host.session.shouldstop = message["reason"]

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
        begun = len(self.left) < len(self.items)
        for number in list(self.left):
            self._fail_unbegun(number, end)
            if begun or self.host._stopping():
                break  # the rest has a chance in a new guest

    def _fail_unbegun(self, number: int, end: End) -> None:
        self.host._fail(self.left.pop(number), "setup", *self._why_unbegun(end))

    def _why_unbegun(self, end: End) -> _Reason:
        return f"before this test could start in the guest: {end}", self._last_words(end)

    def _last_words(self, end: End) -> list[tuple[str, str]]:
        result = []
        if console := end.console or self.guest.console:
            result.append(("Guest console", console_tail(console)))
        if said := bytes(self.inner.stderr).decode(errors="replace").strip():
            result.append(("Guest stderr", said))
        return result


def say_booting(config: pytest.Config, what: str) -> None:
    """Say on the terminal, if there is one, why nothing happens for some seconds."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and reporter.verbosity > -2:
        if config.get_terminal_writer().width_of_current_line:
            reporter.write_line("")
        reporter.write_line(f"booting {what} …")


def _why_unstarted(configuration: GuestConfiguration, error: Exception) -> _Reason:
    console = error.console if isinstance(error, GuestError) else ""
    sections = [("Guest console", console_tail(console))] if console else []
    return f"the guest ({configuration}) did not start: {error}", sections


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
    """The class of a warning; UserWarning where nothing here has imported it, as a guest is not to say what is."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
