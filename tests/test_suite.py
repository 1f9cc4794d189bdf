"""What the suite says of itself: which tests compute too long for every run, and where the time went."""

from types import SimpleNamespace

from conftest import DEAR_SECONDS, cpu_seconds, dear, dearest_files, pytest_xdist_make_scheduler
from xdist.scheduler import WorkStealingScheduling


def report(name, setup, call, *marks):
    return SimpleNamespace(
        nodeid=name, keywords=dict.fromkeys(marks, 1), user_properties=[["setup", setup], ["call", call]]
    )


REPORTS = [
    report("a.py::quick", 40.0, 1.0),
    report("a.py::dear", 0.0, DEAR_SECONDS + 1.0),
    report("b.py::marked", 0.0, 300.0, "slow"),
]


def test_a_test_that_computes_long_is_named_unless_it_is_marked():
    assert dear(REPORTS) == [f"a.py::dear: {DEAR_SECONDS + 1} s"]


def test_files_are_listed_by_what_their_tests_and_fixtures_computed():
    assert [line.split() for line in dearest_files(REPORTS)] == [["300.0", "s", "b.py"], ["62.0", "s", "a.py"]]


def test_what_is_measured_is_work_and_not_waiting():
    before = cpu_seconds()
    assert sum(range(3_000_000)) and cpu_seconds() > before


def test_two_processes_steal_from_each_other_unless_told_otherwise():
    def scheduler(dist):
        config = SimpleNamespace(getoption=lambda name: dist, getvalue=lambda name: ["popen", "popen"])
        return pytest_xdist_make_scheduler(config, None)

    assert scheduler("loadfile") is None and isinstance(scheduler("load"), WorkStealingScheduling)
