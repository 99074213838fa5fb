"""A wheel holds whatever its packages have in the checkout: sources in C++ and data too."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "export", "kernels", "loadtest", "models", "server", "training")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def test_nothing_is_left_out(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    checkout = tmp_path / "checkout"
    for name in [*tracked, "pyproject.toml", "README.md", "LICENSE", "page.py"]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=checkout, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert {name for name in tracked if not name.endswith("README.md")} <= set(zipfile.ZipFile(wheel).namelist())
