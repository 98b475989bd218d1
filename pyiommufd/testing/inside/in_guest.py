"""The pytest plugin of the run inside the guest: runs what the host's run asks for and tells it what happens.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Generator
from typing import Any

import pytest

from pyiommufd.testing.inside import wire

# What only the host's run does: it chooses and orders the tests, counts the failures and writes the reports.
_HOST_OPTIONS: dict[str, Any] = {
    "guest": False,
    "guest_shell": False,
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "stepwise_reset": False,
    "maxfail": 0,
    "usepdb": False,
    "xmlpath": None,
    "pastebin": None,
    "report_log": None,
    "htmlpath": None,
    "basetemp": None,
    "continue_on_collection_errors": True,
    "numprocesses": None,
    "distload": False,
    "dist": "no",
    "tx": [],
    "cov_report": {"": None},
    "cov_fail_under": 0,
}


def _leave_to_the_host(options: Any) -> None:
    for name, value in _HOST_OPTIONS.items():
        if hasattr(options, name):
            setattr(options, name, value)


class _QuietReporter:
    """Stands in for the terminal reporter: it has its methods, for those who ask for it, and none of its hooks."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reporter, name)


class InnerRun:
    """The run in the guest.

    Args:
        port: The file descriptor of the port to the host.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._buffer = bytearray()
        self._wanted: list[str] = []
        self._numbers: dict[pytest.Item, int] = {}
        self._number = -1
        self._session: pytest.Session | None = None
        self._pid = os.getpid()
        self._one_by_one = False
        self._runs: deque[tuple[int, int | None] | None] = deque()

    def _send(self, op: str, **message: Any) -> None:
        if os.getpid() != self._pid:
            return  # a child that a test forked and that came back into pytest: the host hears the parent only
        data = memoryview(wire.encode({"op": op, **message}))
        while data:
            data = data[os.write(self._port, data) :]

    def _receive(self) -> dict[str, Any]:
        while (message := wire.decode(self._buffer)) is None:
            data = os.read(self._port, 1 << 16)
            if not data:
                os._exit(1)  # the host is gone: nobody wants to know
            self._buffer += data
        return message

    def _obey(self, message: dict[str, Any]) -> None:
        if message["op"] == "stop" and self._session is not None:
            self._session.shouldstop = "the host's run stops"
        elif message["op"] == "run":
            self._runs.append((message["test"], message["next"]))
        elif message["op"] == "end":
            self._runs.append(None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Take the job, before any plugin acts on an option that is the host's."""
        self._send("ready", pid=self._pid)
        job = self._receive()
        self._wanted, self._one_by_one = job["tests"], job["one_by_one"]
        _leave_to_the_host(config.option)
        config.args[:] = job["files"]

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Silence the terminal reporter: the host's reports."""
        reporter = config.pluginmanager.unregister(name="terminalreporter")
        config.pluginmanager.register(_QuietReporter(reporter), "terminalreporter")

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember what is to be stopped."""
        self._session = session

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Say why something could not be collected."""
        if not report.passed:
            text = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longreprtext
            self._send("uncollected", nodeid=report.nodeid, skipped=report.skipped, reason=text)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        """Run what the host chose, in its order, whatever the plugins here would choose."""
        by_id: dict[str, list[pytest.Item]] = {}
        for item in items:
            by_id.setdefault(item.nodeid, []).append(item)
        yield
        chosen, missing = [], []
        for number, nodeid in enumerate(self._wanted):
            if found := by_id.get(nodeid):
                item = found.pop(0)
                self._numbers[item] = number
                chosen.append(item)
            else:
                missing.append(number)
        items[:] = chosen
        self._send("collected", missing=missing)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run each test when the host says so, where it does not know them all from the start.

        Raises:
            pytest.Session.Failed: A plugin here wants no more, after a failure.
            pytest.Session.Interrupted: A plugin here or the host wants no more.
        """
        if not self._one_by_one:
            return None
        items = {number: item for item, number in self._numbers.items()}
        while True:
            while not self._runs and not session.shouldstop:
                self._obey(self._receive())
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            run = self._runs.popleft()
            if run is None:
                return True
            item = items[run[0]]
            following = None if run[1] is None else items.get(run[1])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Frame a test; between two, look whether the host wants to go on."""
        self._number = self._numbers[item]
        self._send("start", test=self._number)
        result = yield
        self._send("finish", test=self._number)
        while os.getpid() == self._pid and (self._buffer or select.select([self._port], [], [], 0)[0]):
            self._obey(self._receive())
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Pass a report on; after a failure wait for what the host makes of it, before anything is torn down."""
        if self._session is None or os.getpid() != self._pid:
            return
        hook = self._session.config.hook
        # The terminal reporter would ask, and pytest's subtests make the outcome of their test in the answer.
        hook.pytest_report_teststatus(report=report, config=self._session.config)
        data = hook.pytest_report_to_serializable(config=self._session.config, report=report)
        self._send("report", test=self._number, report=data)
        if report.failed:
            self._obey(self._receive())

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        """Pass a warning of a test on; those of configuring and collecting the host's run has seen itself."""
        if when == "runtest":
            category = warning_message.category
            self._send(
                "warning",
                category=[category.__module__, category.__qualname__],
                text=str(warning_message.message),
                filename=warning_message.filename,
                lineno=warning_message.lineno,
                nodeid=nodeid,
                location=location,
            )

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Pass `pytest.exit` on."""
        if isinstance(excinfo.value, pytest.exit.Exception):
            self._send("exit", reason=excinfo.value.msg, status=excinfo.value.returncode)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Say why this run ends, where it does so by itself."""
        if reason := session.shouldstop or session.shouldfail:
            self._send("stopped", reason=str(reason))
        if controller := getattr(session.config.pluginmanager.getplugin("_cov"), "cov_controller", None):
            self._send("coverage", **measured(controller.cov.get_data()))


def measured(data: Any) -> dict[str, Any]:
    """What a `coverage.CoverageData` holds, for JSON: `guest_coverage.fill` puts it into another."""
    elements = data.arcs if data.has_arcs() else data.lines
    files = sorted(data.measured_files())
    contexts = {}
    for context in sorted(data.measured_contexts()):
        data.set_query_context(context)
        contexts[context] = {name: found for name in files if (found := elements(name))}
    data.set_query_contexts(None)
    return {"tracers": {name: data.file_tracer(name) or "" for name in files}, "contexts": contexts}


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    """Connect to the host, and have no plugin act on an option that is the host's: pytest-cov looks at them here."""
    early_config.pluginmanager.register(InnerRun(wire.open_port(wire.PORT)), "pyiommufd-in-guest")
    _leave_to_the_host(early_config.known_args_namespace)
    yield
