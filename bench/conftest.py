"""Options and fixtures of the suite; README.md describes what is measured and how."""

import time
from dataclasses import asdict

import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.train.compiling import compile_problem

from . import environment, timing
from .ceilings import Ceilings, measure_ceilings
from .measurement import Measurement
from .peers import load_dle
from .workload import COMPILE, EAGER, FASTGLOW, ORDINARY, PEER, Implementation, Workload

ORDER = (FASTGLOW, EAGER, ORDINARY, PEER, COMPILE)  # slowest last: --time-limit may stop the run

DURING_THE_RUN = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("fastglow benchmarks")
    group.addoption("--peer-dle", metavar="PATH", help="Checkout of NVIDIA's DeepLearningExamples to compare with.")
    group.addoption("--small", action="store_true", help="On a CPU, time the small sizes that tests verify.")
    group.addoption(
        "--time-limit", type=float, default=float("inf"), metavar="SECONDS", help="Start no benchmark after this time."
    )


def pytest_configure(config):
    path = config.getoption("peer_dle", None)
    try:
        dle = load_dle(path) if path else None
    except FastglowError as error:
        raise pytest.UsageError(f"--peer-dle: {error}") from error
    config.stash[DURING_THE_RUN] = {"start": time.monotonic(), "late": 0, "dle": dle}


def pytest_generate_tests(metafunc):
    if "implementation" in metafunc.fixturenames:
        names = [item.name for item in _implementations(metafunc.config)]
        metafunc.parametrize("implementation", names, indirect=True)


def _implementations(config) -> list[Implementation]:
    """Those of the run."""
    dle = config.stash[DURING_THE_RUN]["dle"]
    absent = {PEER: dle is None, COMPILE: not (environment.has_gpu() or _compiles(config))}
    return [Implementation(name, dle) for name in ORDER if not absent.get(name)]


def _has_small_sizes(config) -> bool:
    return config._benchmarksession.disabled or config.getoption("small")


def _compiles(config) -> bool:
    """On a CPU."""
    return not _has_small_sizes(config) and compile_problem(environment.device()) is None


def pytest_collection_modifyitems(config, items):
    """Sets the suite's timer, sorts by `ORDER` within a file, and drops implementations that a workload lacks."""
    ours = [item for item in items if "implementation" in item.fixturenames]
    others = [item for item in items if "implementation" not in item.fixturenames]
    files = list(dict.fromkeys(item.path for item in ours))
    ours.sort(key=lambda item: (files.index(item.path), ORDER.index(item.callspec.params["implementation"])))
    timed = not config._benchmarksession.disabled
    small = _has_small_sizes(config)
    supported = [item for item in ours if _runs(small, timed, **item.callspec.params)]
    if timed or environment.has_gpu():
        for item in supported:
            item.add_marker(pytest.mark.benchmark(timer=timing.CLOCK))
            item.add_marker(pytest.mark.filterwarnings("default"))  # warnings from compilers must not fail the run
    config.hook.pytest_deselected(items=[item for item in ours if item not in supported])
    items[:] = others + supported


def _runs(small: bool, timed: bool, workload: Workload, implementation: str, **others) -> bool:
    if timed and (workload.in_turn or not environment.has_gpu()) and implementation != FASTGLOW:
        return False  # fastglow's benchmark times the others, too
    return workload.offers(implementation) and workload.runs(small)


def pytest_runtest_setup(item):
    run = item.config.stash[DURING_THE_RUN]
    limit = item.config.getoption("time_limit", float("inf"))
    if time.monotonic() - run["start"] > limit:
        run["late"] += 1
        pytest.skip(f"--time-limit {limit:g} s is up")


def pytest_terminal_summary(terminalreporter, config):
    skipped = []
    if not environment.has_gpu():
        small = _has_small_sizes(config)
        left_out = "published sizes, torch.compile" if small else "single operations, which are PyTorch's on a CPU"
        skipped.append(f"no GPU: skipped GPU times, float16, {left_out}")
        if problem := None if small else compile_problem(environment.device()):
            skipped.append(f"torch.compile skipped: {problem}")
    if not config.stash[DURING_THE_RUN]["dle"]:
        skipped.append("no --peer-dle PATH: NVIDIA's own code skipped")
    if late := config.stash[DURING_THE_RUN]["late"]:
        skipped.append(f"--time-limit: {late} benchmarks skipped")
    for line in skipped:
        terminalreporter.write_line(f"bench: {line}")


def pytest_sessionfinish(session, exitstatus):
    """A run that left benchmarks out for lack of time has not succeeded: `make gpu` goes on with it."""
    if exitstatus == pytest.ExitCode.OK and session.config.stash[DURING_THE_RUN]["late"]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_benchmark_update_machine_info(config, machine_info):
    ceilings = config.stash[DURING_THE_RUN].get("ceilings")
    machine_info["fastglow"] = {**environment.describe(), "ceilings": ceilings and asdict(ceilings)}


def pytest_benchmark_update_json(output_json):
    for benchmark in output_json["benchmarks"]:
        benchmark["params"].pop("workload", None)  # extra_info describes it


@pytest.fixture(scope="session", autouse=True)
def _streams_and_algorithms():
    """Runs everything on one side stream, on which graphs and their backward passes are captured."""
    if not environment.has_gpu():
        yield
        return
    chosen = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # as NVIDIA trains
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
    torch.backends.cudnn.benchmark = chosen


@pytest.fixture(scope="session")
def ceilings(request, _streams_and_algorithms) -> Ceilings | None:
    """None under --benchmark-disable."""
    if request.config._benchmarksession.disabled:
        return None
    found = measure_ceilings(environment.device())
    request.config.stash[DURING_THE_RUN]["ceilings"] = found
    return found


@pytest.fixture
def implementation(request) -> Implementation:
    return next(item for item in _implementations(request.config) if item.name == request.param)


@pytest.fixture
def measure(request, benchmark, ceilings) -> Measurement:
    """`measure(workload, direction, implementation)` verifies, then times."""
    torch.manual_seed(0)
    config = request.config
    seconds = float(config.getoption("benchmark_max_time"))
    return Measurement(benchmark, ceilings, _implementations(config), seconds)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_code(request):
    """Resets torch.compile after each file: it limits the compilations per function."""
    yield
    if any(item.name == COMPILE for item in _implementations(request.config)):
        torch.compiler.reset()
