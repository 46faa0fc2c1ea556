"""What every test stands on: one event loop flavour, programs that must be there, and no skip that passes for a test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.place import Place


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without", default="", help="programs whose tests are left out, named in the last line")
    parser.addoption("--kills", type=int, default=3, help="how often tests/faults kills something")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): the test runs this program, which pip cannot bring")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    waived = set(config.getoption("--without").split())
    left_out = [item for item in items if waived & {program for mark in item.iter_markers("needs") for program in mark.args}]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _programs(request: pytest.FixtureRequest) -> None:
    for mark in request.node.iter_markers("needs"):
        for program in mark.args:
            assert shutil.which(program), f"{program} is missing; `make system` installs or names it"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    waived = config.getoption("--without")
    if waived:
        terminalreporter.write_line(f"NOT RUN ({waived}: waived): {len(terminalreporter.stats.get('deselected', []))} tests")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skipped test presented as passing is a defect."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Place(tmp_path_factory.mktemp("place")) as place:
        yield place


@pytest.fixture
def place(_standing: Place) -> Place:
    """A broker, an issuer and a runner, as new: nothing scripted, nothing remembered."""
    _standing.begin_anew()
    return _standing
