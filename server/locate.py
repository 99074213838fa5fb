"""Finds tritonserver: $TRITONSERVER, then PATH, then the nvidia-pytriton wheel."""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from server.errors import InstallationError

HOW_TO_GET_IT = (
    "install the embedded one (pip install nvidia-pytriton==0.7.0), "
    "or name yours in the environment: TRITONSERVER=/opt/tritonserver/bin/tritonserver"
)


@dataclass(frozen=True)
class Installation:
    """A tritonserver on this machine. `embedded`: it is the wheel's, which has no LibTorch backend."""

    executable: Path

    @property
    def root(self) -> Path:
        return self.executable.parent.parent

    @property
    def backends(self) -> Path:
        return self.root / "backends"

    @property
    def embedded(self) -> bool:
        return (self.root / "python_backend_stubs").is_dir()

    @property
    def native_libtorch(self) -> Path | None:
        """Return the folder of the native LibTorch backend and its libtorch, None if there is none."""
        folder = self.backends / "pytorch"
        return folder if (folder / "libtriton_pytorch.so").is_file() else None

    def stub(self, python_version: str) -> Path | None:
        """Return the Python backend's executable for a version such as "3.11", None if there is none."""
        path = self.root / "python_backend_stubs" / python_version / "triton_python_backend_stub"
        return path if path.is_file() else None


def find_tritonserver() -> Installation:
    """Find tritonserver. Raises `InstallationError`, which says how to get it."""
    named = os.environ.get("TRITONSERVER")
    if named:
        if not os.access(named, os.X_OK) or not Path(named).is_file():
            raise InstallationError(f"TRITONSERVER is {named}, which is not an executable file: {HOW_TO_GET_IT}")
        return Installation(Path(named).resolve())
    on_path = shutil.which("tritonserver")
    if on_path:
        return Installation(Path(on_path).resolve())
    spec = importlib.util.find_spec("pytriton")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        executable = Path(folder) / "tritonserver" / "bin" / "tritonserver"
        if executable.is_file():
            return Installation(executable)
    raise InstallationError(f"tritonserver is not found: {HOW_TO_GET_IT}")
