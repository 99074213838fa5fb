"""Fixtures that several folders share: the digits checkpoint, its repository, a running server, Chromium."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "runs" / "digits-nano"
HELD_OUT = ROOT / "data" / "digits" / "val"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Those of a line share servers, and run one after another: they mostly wait.
SERVED = (
    ("tests/server/", "tests/benchmarks/test_fuzz.py"),
    ("tests/deploy/", "tests/end_to_end/", "tests/loadtest/", "tests/page/"),
    ("tests/client/test_client_served", "tests/client/test_client_shared_memory"),  # they count what is in /dev/shm
)
# Files of few tests that take long, the longest first: one that was left for the end would be waited for alone.
LONG = (
    "tests/kernels/test_toeplitz.py",
    "tests/training/test_resume.py",
    "tests/kernels/test_grad_weight.py",
    "tests/kernels/test_masked_patch_loss_triton.py",
    "tests/training/test_distributed.py",
    "tests/kernels/test_depthwise_conv2d_triton.py",
    "tests/export/test_serve_without_python.py",
    "tests/export/test_build_replaces.py",
    "tests/kernels/test_native_library.py",
    "tests/kernels/test_precision.py",
    "tests/training/test_signals.py",
)


def pytest_configure(config: pytest.Config) -> None:
    os.chdir(ROOT)
    # A shell that starts the tests in the background has SIGINT ignored, and so would every process that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What is imported and collected stays: the garbage collector would look through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or extension modules would tell of leaks as the process ends


def scope(nodeid: str) -> str:
    """What is run in one process."""
    file = nodeid.partition("::")[0]
    return next((folders[0] for folders in SERVED if file.startswith(folders)), file)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order of the scopes: what meets a server, what is long, then those of the most tests first."""
    if not hasattr(config, "workerinput"):  # xdist's
        return
    first = {name: place for place, name in enumerate((*(folders[0] for folders in SERVED), *LONG))}
    sizes = Counter(scope(item.nodeid) for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        name = scope(item.nodeid)
        return first.get(name, len(first)), -sizes[name]

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What meets a server runs one after another in two processes, the rest by files in others; single tests, whatever
    file they are of, with --dist worksteal, which is for tests that meet none."""
    if config.getoption("dist") == "worksteal":
        return None  # xdist's own
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    config.option.loadscopereorder = False  # pytest_collection_modifyitems has ordered them
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """with serving(write, **options) as server: a tritonserver with what write(folder, **options) puts there.

    `launch` holds options of the TritonServer.
    """

    @contextmanager
    def serve(write: Callable[..., Any], launch: Mapping[str, Any] = {}, **options: Any) -> Iterator["TritonServer"]:  # noqa: F821
        from server import TritonServer

        folder = tmp_path_factory.mktemp("served")
        write(folder / "model_repository", **options)
        log = folder / "server.log"
        with TritonServer(folder / "model_repository", log_file=log, drain_seconds=5, **launch) as server:
            yield server

    return serve


@pytest.fixture(scope="session")
def digits_checkpoint() -> Path:
    """The demo's checkpoint, trained now if `make demo` has not."""
    import demo

    with FileLock(ROOT / "runs" / ".lock"):  # two processes may ask
        demo.train()
    return CHECKPOINT


@pytest.fixture(scope="session")
def digits_repository(digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of that checkpoint, built by the command that a user types; the test processes share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    repository = folder / "model_repository"
    with FileLock(folder / ".model_repository.lock"):
        if not repository.exists():
            built = tmp_path_factory.mktemp("built") / "model_repository"
            command = [sys.executable, "build_models.py", "--weights", str(digits_checkpoint), "--output", str(built)]
            subprocess.run([*command, "--format", "torchscript,onnx"], check=True, cwd=ROOT)
            built.rename(repository)
    return repository


@pytest.fixture(scope="session")
def digits_server(digits_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["TritonServer"]:  # noqa: F821
    """A real tritonserver on free loopback ports."""
    from server import TritonServer

    log_file = tmp_path_factory.mktemp("server") / "server.log"
    events: list[str] = []
    with TritonServer(digits_repository, log_file=log_file, on_event=events.append) as server:
        yield server
    assert not server.restarts, events  # or it would show as refused connections in whichever tests came then


@pytest.fixture(scope="session")
def chromium() -> Iterator["Chrome"]:  # noqa: F821
    """Headless Chromium that logs its requests."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = program
    for each in ("headless=new", "disable-dev-shm-usage", "window-size=1280,920", "hide-scrollbars", "no-proxy-server"):
        options.add_argument(f"--{each}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root has no other way
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = Chrome(options, Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def phone(chromium: "Chrome") -> Iterator["Chrome"]:  # noqa: F821
    """The same, 390 pixels wide."""
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    yield chromium
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
