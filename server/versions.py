"""The backbone's version folders in a repository: the newest is live, withdrawn ones are hidden."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.checksums import VERSION, version_folders
from server.errors import REMEDIES, ReleaseError
from server.repository import BACKBONE

KEPT = 3
WITHDRAWN = re.compile(rf"\.({VERSION.pattern})\.withdrawn")


class Versions:
    """Folder N is version N; `.N.withdrawn` was rolled back, or is empty because its release failed."""

    def __init__(self, repository: Path) -> None:
        self.model = repository / BACKBONE

    def folder(self, number: int) -> Path:
        return self.model / str(number)

    def numbers(self) -> list[int]:
        """Return the versions, ascending. Raises `ReleaseError` if there is none."""
        found = [int(folder.name) for folder in version_folders(self.model)]
        if not found:
            raise ReleaseError(f"{self.model} holds no version: run build_models.py")
        return found

    def unused_number(self) -> int:
        """Return a number higher than any used one, so that a number always means the same weights."""
        return max([*self.numbers(), *self._withdrawn()]) + 1

    def withdraw(self, number: int, keep: bool = True) -> None:
        """Hide a version, if it exists, and replace an older hidden one of this number.

        Without `keep` only an empty folder is left, so that the number is not used again.
        """
        if self.folder(number).exists():
            hidden = self._hidden(number)
            shutil.rmtree(hidden, ignore_errors=True)
            self.folder(number).rename(hidden)
            if not keep:
                shutil.rmtree(hidden, ignore_errors=True)
                hidden.mkdir(exist_ok=True)

    def bring_back(self, number: int) -> None:
        if not self.folder(number).exists():
            self._hidden(number).rename(self.folder(number))

    def remove_all_but(self, kept: int) -> None:
        """Remove all versions except the newest `kept` and the newest withdrawn one that has files."""
        for number in self.numbers()[:-kept]:
            shutil.rmtree(self.folder(number))
        withdrawn = self._withdrawn()
        copies = [number for number in withdrawn if any(self._hidden(number).iterdir())]
        for number in set(withdrawn) - set(copies[-1:]):
            shutil.rmtree(self._hidden(number))

    @contextmanager
    def incoming(self, source: Path) -> Iterator[Path]:
        """Copy `source` into a hidden folder that a rename makes a version. It is removed at the end if it is left."""
        copy = self.model / ".incoming"
        shutil.rmtree(copy, ignore_errors=True)  # left by a release that was killed
        try:
            try:
                shutil.copytree(source, copy)
            except OSError as error:
                reason = str(error.args[0][0][2] if isinstance(error, shutil.Error) else error)  # the list's first
                remedy = next(
                    (words for code, words in REMEDIES.items() if os.strerror(code) in reason),
                    "fix that, or release as a user who may read the one and write the other",
                )
                raise ReleaseError(f"{source} cannot be copied into {self.model} ({reason}): {remedy}") from None
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator["Versions"]:
        """Lock the model against other releases, rollbacks and builds. Raises `ReleaseError` if one is under way."""
        try:
            handle = os.open(self.model, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ReleaseError(f"{self.model} cannot be read ({error.strerror}): name the served repository") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ReleaseError(
                    f"another build, release or rollback of {self.model} is under way: repeat this when it has ended"
                ) from None
            yield self
        finally:
            os.close(handle)

    def _hidden(self, number: int) -> Path:
        return self.model / f".{number}.withdrawn"

    def _withdrawn(self) -> list[int]:
        found = (WITHDRAWN.fullmatch(each.name) for each in self.model.iterdir())
        return sorted(int(each.group(1)) for each in found if each)
