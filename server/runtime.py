"""A server's private folder (backends, the libraries that the stub needs, the log) and the command that uses it."""

import contextlib
import os
import re
import secrets
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.backends import build as backends
from server.endpoints import Endpoints
from server.errors import InstallationError
from server.libraries import find_library, find_resize
from server.locate import Installation
from server.management import MANAGEMENT_HEADER, SHARED_MEMORY_HEADER
from server.preflight import check_libpython, check_loadable, check_numpy, check_python_on_path, check_stub_libraries
from server.private_folder import MARK, PrivateFolder, hold
from server.repository import Repository
from server.tls import Tls

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON_VERSION}.so.1.0"
SHELL_SAFE = re.compile(r"[\w./+=@:,-]*", re.ASCII)  # the Python backend passes paths through bash, unquoted
RESTRICTED = "model-config,model-repository,trace,logging"  # to the management token; shared memory has its own
# Read by glibc when a process starts; what the user has set stays. docs/serving.md has the measurements.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "2147483647",  # large activations stay mapped between requests
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_ARENA_MAX": "1",  # the heaps of further arenas end at 64 MB and get few huge pages
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# 0.1 ms: an OpenMP worker that spins longer holds the core that another step of the ensemble needs.
SPIN = {"GOMP_SPINCOUNT": "4000"}
# Milliseconds. By default tritonserver keeps a client that falls silent after HTTP/2's settings for ever. The pings end
# that; the age ends one that answers them and sends a byte now and then, and spreads clients over new servers.
GRPC_PATIENCE = {
    "grpc-keepalive-time": 60_000,
    "grpc-keepalive-timeout": 20_000,
    "grpc-keepalive-permit-without-calls": 1,
    "grpc-http2-max-pings-without-data": 0,  # no limit
    "grpc-max-connection-age": 120_000,
    "grpc-max-connection-age-grace": 60_000,  # for requests in flight
}
SHM_BYTES = 8 * 1024 * 1024  # of each backend process at its start: 16 images of 224 x 224, in and out, with room
SHM_GROWTH_BYTES = 8 * 1024 * 1024


class Runtime:
    """Made once for a server, used again at every restart, removed at its end."""

    def __init__(self, installation: Installation, repository: Repository, library: str | Path | None = None) -> None:
        self.installation = installation
        self.repository = repository
        self.library = find_library(library, repository)
        self.resize = find_resize()
        base = tempfile.gettempdir()
        self._private = PrivateFolder(base if is_shell_safe(base) else "/tmp")
        self.folder = self._private.path
        self.shm_prefix = f"{self.folder.name}-"
        self._release_repository = hold(self, repository.path)  # for build_models.py
        try:
            self._write_preload_guard()
            fixes = backends.FIXES.output if backends.is_current(backends.FIXES) else None
            self.fixes = self._link("libwidefield_fixes.so", fixes)
            self.operators = self._link("libwidefield.so", self.library if installation.native_libtorch else None)
            if installation.embedded:
                self._assemble_backends()
        except BaseException:
            self.remove()
            raise

    def hold_repository(self) -> None:
        """The folder that is there now: each build puts another in its place."""
        before = self._release_repository
        with contextlib.suppress(OSError):  # it was removed
            self._release_repository = hold(self, self.repository.path)
            before()

    def remove(self) -> None:
        self._private.remove()
        self._release_repository()

    def warnings(self) -> Iterator[str]:
        """A line for each thing that works, but not as it should."""
        if self.repository.unchecked:
            yield self.repository.unchecked
        if self.installation.embedded:
            yield from self.repository.overridden
        build = f"run {sys.executable} {backends.__file__}"
        if self.resize is None and self.repository.resizes:
            yield f"images are resized slowly: {build} resize"
        if self.fixes is None:
            yield f"requests may wait half a second, and a release may end the server: {build} fixes"

    def environment(self) -> dict[str, str]:
        """What is set for tritonserver and its backend processes on top of the supervisor's own environment."""
        values = {name: value for name, value in (ENVIRONMENT | SPIN).items() if name not in os.environ}
        libraries = [str(self.folder / "lib")] if self.installation.embedded else []
        native = self.installation.native_libtorch
        if native is not None:
            libraries.append(str(native))
        if libraries:
            values["LD_LIBRARY_PATH"] = before_inherited("LD_LIBRARY_PATH", libraries)
        if self.installation.embedded:
            values["PATH"] = f"{python_folder()}:{os.environ.get('PATH', os.defpath)}"
            values["WIDEFIELD_LIBPYTHON"] = LIBPYTHON
        if self.resize is not None:
            values["WIDEFIELD_RESIZE"] = str(self.resize)
        if self.library is not None:
            values["WIDEFIELD_LIBRARY"] = str(self.library)
        if preload := [str(library) for library in (self.fixes, self.operators) if library is not None]:
            values["LD_PRELOAD"] = before_inherited("LD_PRELOAD", preload)
            values["BASH_ENV"] = str(self.folder / MARK)
        return values

    def command(
        self,
        endpoints: Endpoints,
        drain_seconds: int,
        management_token: str | None = None,
        extra: Sequence[str] = (),
        tls: Tls | None = None,
        shared_memory_token: str | None = None,
    ) -> list[str]:
        """tritonserver's command line. The restricted interfaces answer only to a header that holds their token.

        A token that is not given is random, and the interface closed: whoever can load models can run code, and whoever
        can show the server shared memory can read and write what other processes share with it.
        """
        options = {
            "model-repository": self._repository_path(),
            "model-control-mode": "explicit" if management_token else "none",
            **{f"{service}-address": endpoints.listen_address(service) for service in endpoints.hosts},
            **{f"{service}-port": port for service, port in endpoints.ports.items()},
            "metrics-config": "summary_latencies=true",
            "log-format": "ISO8601",
            "exit-timeout-secs": drain_seconds,
        } | GRPC_PATIENCE
        if tls is not None:
            options |= tls.options()
        if not has_gpu():
            options |= {"allow-gpu-metrics": "false", "pinned-memory-pool-byte-size": 0}
        if self.installation.embedded:
            options["backend-directory"] = str(self.folder / "backends")
            options["model-config-name"] = "embedded"  # <model>/configs/embedded.pbtxt, where there is one
        if management_token:
            options["load-model"] = "*"
        arguments = [f"--{name}={value}" for name, value in options.items()]
        for interfaces, header, token in (
            (RESTRICTED, MANAGEMENT_HEADER, management_token),
            ("shared-memory", SHARED_MEMORY_HEADER, shared_memory_token),
        ):
            key = f"{interfaces}:{header}={token or secrets.token_hex(16)}"
            arguments += [f"--http-restricted-api={key}", f"--grpc-restricted-protocol={key}"]
        arguments += [  # "python" speaks for the Python-based backends too
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
            f"--backend-config=python,shm-growth-byte-size={SHM_GROWTH_BYTES}",
        ]
        return [str(self.installation.executable), "--disable-auto-complete-config", *arguments, *extra]

    def _assemble_backends(self) -> None:
        if model := self.repository.first_of("python"):
            check_numpy(model)
        check_loadable(self.folder)
        check_python_on_path(python_folder())
        stub = self.installation.stub(PYTHON_VERSION)
        self._link_libpython()
        python = self.folder / "backends" / "python"
        python.mkdir(parents=True)
        bundled = self.installation.backends / "python"
        # A copy: tritonserver refuses a library whose real path lies outside the backend's folder.
        shutil.copy2(bundled / "libtriton_python.so", python)
        (python / "triton_python_backend_utils.py").symlink_to(bundled / "triton_python_backend_utils.py")
        (python / stub.name).symlink_to(stub)  # its RPATH counts from the real path
        for library in backends.BACKENDS:
            self._place(library)
        check_stub_libraries(stub, {**os.environ, **self.environment()})

    def _place(self, library: backends.Library) -> None:
        """One of our own backends, if it is built; it must be where a model needs it."""
        name = library.folder.name
        model = self.repository.first_of(name)
        folder = self.folder / "backends" / name
        folder.mkdir()
        try:
            if backends.is_current(library):
                shutil.copy2(library.output, folder)
                for source in library.folder.glob("[!_]*.py"):
                    (folder / source.name).symlink_to(source)
            elif model:
                raise InstallationError(
                    f"model {model} needs the {name} backend, not built for this environment yet: "
                    f"run {sys.executable} {backends.__file__}"
                )
        except backends.BuildError as error:  # no PyTorch; not every repository needs it
            if model:
                raise InstallationError(f"model {model} needs the {name} backend: {error}") from None

    def _link(self, name: str, library: Path | None) -> Path | None:
        """A path without spaces and colons, which separate LD_PRELOAD's."""
        if library is None:
            return None
        link = self.folder / name
        link.symlink_to(library)
        return link

    def _link_libpython(self) -> None:
        """libpython alone: this Python's whole library folder could shadow the server's other libraries."""
        folder = self.folder / "lib"
        folder.mkdir()
        own = Path(sysconfig.get_config_var("LIBDIR") or "") / LIBPYTHON
        if own.is_file():
            (folder / LIBPYTHON).symlink_to(own)
        else:
            check_libpython(LIBPYTHON)

    def _write_preload_guard(self) -> None:
        """bash starts the stubs, and reads this file first: LD_PRELOAD is for tritonserver itself."""
        (self.folder / MARK).write_text("unset LD_PRELOAD BASH_ENV\n")

    def _repository_path(self) -> str:
        path = str(self.repository.path)
        if is_shell_safe(path):
            return path
        link = self.folder / "repository"
        if not link.is_symlink():
            link.symlink_to(self.repository.path)
        return str(link)


def python_folder() -> Path:
    """Where this Python's `python3` lies; not resolved, because a virtual environment's is a link."""
    return Path(sys.executable).parent


def is_shell_safe(path: str) -> bool:
    return SHELL_SAFE.fullmatch(path) is not None


def before_inherited(variable: str, paths: Sequence[str]) -> str:
    return ":".join(filter(None, [*paths, os.environ.get(variable)]))


def has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
