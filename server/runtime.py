"""A server's private folder (backends, libraries, log), and tritonserver's environment and command line."""

import contextlib
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.backends import build as backends
from server.cores import too_few, too_many
from server.endpoints import Endpoints
from server.errors import InstallationError
from server.libraries import find_fixes, find_library, find_resize
from server.locate import Installation
from server.preflight import (
    check_libpython,
    check_loadable,
    check_numpy,
    check_python_on_path,
    check_stub_libraries,
    in_own_process,
)
from server.private_folder import MARK, PrivateFolder, hold
from server.private_log import PrivateLog
from server.repository import Repository
from server.tls import Tls
from server.tritonserver_options import before, common_environment, common_options

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON_VERSION}.so.1.0"
SHELL_SAFE = re.compile(r"[\w./+=@:,-]*", re.ASCII)  # the Python backend passes paths to bash without quotes


class Runtime:
    """The private folder of a server and what is made from it: used at every restart, removed at the end."""

    def __init__(
        self,
        installation: Installation,
        repository: Repository,
        library: str | Path | None = None,
        log: Path | None = None,
        forward_log: bool = False,
    ) -> None:
        self._told_lost = False
        self.installation = installation
        self.repository = repository
        self.library = find_library(library, repository)
        self.resize = find_resize()
        base = tempfile.gettempdir()
        self._private = PrivateFolder(base if is_shell_safe(base) else "/tmp")
        self.folder = self._private.path
        self.log = log or self.folder / "tritonserver.log"
        self.shm_prefix = f"{self.folder.name}-"
        self._release_repository = hold(self, repository.path)  # tells build_models.py that it is served
        self._private_log = PrivateLog(self.log, forward_log) if log is None else None
        try:
            # bash reads it before it starts a stub, so that only tritonserver has LD_PRELOAD.
            (self.folder / MARK).write_text("unset LD_PRELOAD BASH_ENV\n")
            self.fixes = self._link("libwidefield_fixes.so", find_fixes())
            self.operators = self._link("libwidefield.so", self.library if installation.native_libtorch else None)
            if installation.embedded:
                self._assemble_backends()
        except BaseException:
            self.remove()
            raise

    @property
    def lost(self) -> bool:
        """Whether the private folder was removed, such as by somebody who emptied /tmp."""
        return not (self.folder / MARK).is_file()

    def tend(self) -> Iterator[str]:
        """Keep the repository locked; yield a line once if the private folder was removed. Called each tick."""
        before = self._release_repository
        with contextlib.suppress(OSError):  # it was removed
            self._release_repository = hold(self, self.repository.path)  # each build replaces the folder
            before()
        if self.lost and not self._told_lost:
            self._told_lost = True
            yield f"{self.folder} was removed: no model can be loaded until the server restarts"

    def remove(self) -> None:
        try:
            if self._private_log is not None:
                self._private_log.close()
        finally:
            self._private.remove()
            self._release_repository()

    def warnings(self) -> Iterator[str]:
        """Yield a line for each thing that works, but badly."""
        if self.repository.unchecked:
            yield self.repository.unchecked
        if self.installation.embedded:
            yield from self.repository.overridden
            for said in filter(None, (judge(self.repository.served) for judge in (too_many, too_few))):
                yield f"{said}, or run python -m server.tune"
        build = f"run {sys.executable} {backends.__file__}"
        if self.resize is None and self.repository.resizes:
            yield f"images are resized slowly: {build} resize"
        if self.fixes is None and os.environ.get("WIDEFIELD_FIXES") is None:  # empty: turned off
            yield f"requests may wait half a second, and a release may end the server: {build} fixes"

    def environment(self) -> dict[str, str]:
        """Return the variables for tritonserver and its backend processes to add to this process's environment."""
        values = common_environment(os.environ)
        libraries = [str(self.folder / "lib")] if self.installation.embedded else []
        native = self.installation.native_libtorch
        if native is not None:
            libraries.append(str(native))
        if libraries:
            values["LD_LIBRARY_PATH"] = before(libraries, os.environ.get("LD_LIBRARY_PATH"))
        if self.installation.embedded:
            values["PATH"] = f"{python_folder()}:{os.environ.get('PATH', os.defpath)}"
            values["WIDEFIELD_LIBPYTHON"] = LIBPYTHON
        if self.resize is not None:
            values["WIDEFIELD_RESIZE"] = str(self.resize)
        if self.library is not None:
            values["WIDEFIELD_LIBRARY"] = str(self.library)
        if preload := [str(library) for library in (self.fixes, self.operators) if library is not None]:
            values["LD_PRELOAD"] = before(preload, os.environ.get("LD_PRELOAD"))
            values["BASH_ENV"] = str(self.folder / MARK)
        return values

    def command(
        self,
        endpoints: Endpoints,
        drain_seconds: int,
        tokens: Sequence[str | None] = (None, None),
        extra: Sequence[str] = (),
        tls: Tls | None = None,
    ) -> list[str]:
        """Return tritonserver's command line. `tokens`: see `common_options`; `extra` overrides the other options."""
        encryption = {} if tls is None else tls.options()
        arguments = common_options(
            self._repository_path(), endpoints.hosts, endpoints.ports, drain_seconds, tokens, encryption, has_gpu()
        )
        arguments += [f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}"]
        if self.installation.embedded:  # the server then reads <model>/configs/embedded.pbtxt if it exists
            arguments += [f"--backend-directory={self.folder / 'backends'}", "--model-config-name=embedded"]
        arguments += [f"--model-control-mode={'explicit' if tokens[0] else 'none'}"]
        if tokens[0]:
            arguments += ["--load-model=*"]
        return [str(self.installation.executable), *arguments, *extra]

    def _assemble_backends(self) -> None:
        check_loadable(self.folder)
        self._link_libpython()
        for library in backends.BACKENDS:
            self._place(library)
        self._place_python_backend()

    def _place_python_backend(self) -> None:
        """Copy the server's own Python backend, unless it has none for this Python and no model needs it."""
        if model := self.repository.first_of("python"):
            check_numpy(model)
        stub = self.installation.stub(PYTHON_VERSION)
        if stub is None and model:
            raise InstallationError(
                f"model {model} needs the Python backend, which tritonserver does not have for Python "
                f"{PYTHON_VERSION}: {in_own_process(model)}"
            )
        if stub is None:
            return
        check_python_on_path(python_folder())
        python = self.folder / "backends" / "python"
        python.mkdir()
        bundled = self.installation.backends / "python"
        # A copy: tritonserver refuses a library whose real path is outside the backend's folder.
        shutil.copy2(bundled / "libtriton_python.so", python)
        (python / "triton_python_backend_utils.py").symlink_to(bundled / "triton_python_backend_utils.py")
        (python / stub.name).symlink_to(stub)  # its RPATH is relative to the real path
        check_stub_libraries(stub, {**os.environ, **self.environment()})

    def _place(self, library: backends.Library) -> None:
        """Copy one of our backends if it is built. Raises `InstallationError` if it is not, but a model needs it."""
        name = library.folder.name
        model = self.repository.first_of(name)
        folder = self.folder / "backends" / name
        folder.mkdir(parents=True)
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
        except backends.BuildError as error:  # PyTorch is missing, which not every repository needs
            if model:
                raise InstallationError(f"model {model} needs the {name} backend: {error}") from None

    def _link(self, name: str, library: Path | None) -> Path | None:
        """Link the library to a path without spaces and colons, which separate the paths in LD_PRELOAD."""
        if library is None:
            return None
        link = self.folder / name
        link.symlink_to(library)
        return link

    def _link_libpython(self) -> None:
        """Link only libpython: the whole library folder of this Python could shadow other libraries of the server."""
        folder = self.folder / "lib"
        folder.mkdir()
        own = Path(sysconfig.get_config_var("LIBDIR") or "") / LIBPYTHON
        if own.is_file():
            (folder / LIBPYTHON).symlink_to(own)
        else:
            check_libpython(LIBPYTHON)

    def _repository_path(self) -> str:
        path = str(self.repository.path)
        if is_shell_safe(path):
            return path
        link = self.folder / "repository"
        if not link.is_symlink():
            link.symlink_to(self.repository.path)
        return str(link)


def python_folder() -> Path:
    """Return the folder of this Python's `python3`; not resolved, since it is a link in a virtual environment."""
    return Path(sys.executable).parent


def is_shell_safe(path: str) -> bool:
    return SHELL_SAFE.fullmatch(path) is not None


def has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
