"""Find the images that a command line names: files, folders, patterns, standard input, URLs."""

import glob
import http.client
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from client._errors import InvalidImageError, shorten

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif"})
STDIN = "-"
URL_SCHEMES = ("http://", "https://")
URL_BYTES = 50_000_000


def find_images(
    folder: "str | os.PathLike[str]", unread: list[OSError] | None = None, others: set[Path] | None = None
) -> list[Path]:
    """Return every image file below `folder` by its suffix, sorted; hidden files and folders are left out.

    Links to folders are followed; each folder is read once. The errors of unreadable folders are appended to `unread`;
    without it folders below `folder` are passed over, and that of `folder` itself is raised, an `OSError`. Files of
    another suffix are added to `others`.
    """
    name = os.fspath(folder)

    def failed(error: OSError) -> None:
        if unread is not None:
            unread.append(error)
        elif error.filename == name:
            raise error

    found, seen = [], set()
    for root, folders, names in os.walk(name, onerror=failed, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to a parent would lead there again and again
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        found += [Path(root, file) for file in names if not file.startswith(".")]
    images = sorted(path for path in found if path.suffix.lower() in SUFFIXES)
    if others is not None:
        others.update({*found} - {*images})
    return images


def expand(
    arguments: Iterable[str], allow_urls: bool = False, others: set[Path] | None = None
) -> Iterator[tuple[str, str | None]]:
    """Yield (name, None) once for each image, and (argument, problem) for an argument without images or unreadable.

    The files of folders that are no images by their suffix are added to `others`.
    """
    seen: set[str] = set()
    for argument in arguments:
        names, problem = _expand_one(argument, allow_urls, others)
        if problem is not None:
            yield argument, problem
        for name in names:
            if name not in seen:
                seen.add(name)
                yield name, None


def loader(found: Sequence[tuple[str, str | None]], timeout: float) -> "Callable[[str], bytes | str]":
    """Return a function from a name that `expand` found to what `Classifier.classify` takes: the path, or bytes.

    Standard input is read here: Ctrl-C ends a read in the main thread only. URLs are downloaded by the function, each
    within `timeout` seconds; it raises `InvalidImageError`.
    """
    typed = sys.stdin.buffer.read() if (STDIN, None) in found else b""

    def load(name: str) -> "bytes | str":
        if name == STDIN:
            return typed
        return _download(name, timeout) if name.startswith(URL_SCHEMES) else name

    return load


def _expand_one(argument: str, allow_urls: bool, others: set[Path] | None) -> tuple[list[str], str | None]:
    if argument == STDIN and sys.stdin is None:
        return [], "standard input is closed: give it an image, or name a file"
    if argument == STDIN:
        return [argument], None
    if argument.startswith(URL_SCHEMES):
        return ([argument], None) if allow_urls else ([], "a URL: give --allow-urls to have it fetched by this machine")
    if not argument:
        return [], "an empty path, perhaps of an empty shell variable: give a file, a folder or a pattern"
    path = Path(argument)
    unread: list[OSError] = []
    if os.path.isdir(path):  # Path.is_dir would raise if its parent may not be read
        files, problem = find_images(path, unread, others), f"the folder holds no image ({' '.join(sorted(SUFFIXES))})"
    elif not os.path.exists(path) and glob.has_magic(argument):
        files = []
        for match in map(Path, sorted(glob.glob(argument, recursive=True))):
            files += find_images(match, unread, others) if os.path.isdir(match) else [match]
        problem = "the pattern matches no file"
    else:  # a missing file too: it is reported like every other bad image
        files, problem = [path], ""
    if unread:
        problem = f"{unread[0].filename} cannot be read ({unread[0].strerror}): its images are left out"
    return ["./-" if str(file) == STDIN else str(file) for file in files], problem if unread or not files else None


def _download(url: str, timeout: float) -> bytes:
    opener = urllib.request.OpenerDirector()  # no file:, ftp: or data:, not even by a redirect
    proxies = {scheme: url for scheme, url in urllib.request.getproxies().items() if scheme in ("http", "https")}
    opener.add_handler(urllib.request.ProxyHandler(proxies))
    for handler in (
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPRedirectHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    deadline = time.monotonic() + timeout
    data = bytearray()
    try:
        with opener.open(url, timeout=timeout) as response:
            length = response.length  # None in a chunked answer, whose end http.client looks for itself
            while len(data) <= URL_BYTES and len(data) != length and (part := response.read1(URL_BYTES)):
                data += part
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{len(data)} bytes came in {timeout:g} s")
    except (OSError, ValueError, http.client.HTTPException) as error:
        words = shorten(str(error) or repr(error), 80)
        raise InvalidImageError(f"the URL cannot be fetched ({words}): check it, or fetch it yourself") from error
    if len(data) > URL_BYTES:
        raise InvalidImageError(f"the URL holds more than {URL_BYTES} bytes: fetch it yourself")
    if length is not None and len(data) < length:
        missing = length - len(data)
        raise InvalidImageError(f"the download was cut short ({len(data)} bytes came, {missing} did not): try again")
    return bytes(data)
