"""`Remote`: the operations on a folder of another file system that a mirror uses, through fsspec, one method each.

A mirror alone calls it. What fails raises a `RemoteError`, whose text holds no credentials of the URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast
from urllib.parse import unquote

from heptad.errors import CheckpointError, PluginError, in_a_line, kind

T = TypeVar("T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://).")
_LOGIN = re.compile(r"(?<=://)(?:[^?#]*:[^?#]*|[^/?#]*)(?=@)")
"""User and password: a password may hold a slash, a user alone cannot."""
_QUERY = re.compile(r"(?<=[?#]).+")
_MAGIC = "*[]{}"
"""Characters that fsspec takes for patterns; a `?` begins a query."""

_HIDDEN = "***"
_LEAST_SECRET = 3
"""Characters: what is shorter is no secret, and would tear messages apart where it is replaced."""


class RemoteError(CheckpointError):
    """The other file system refused something, or cannot be reached."""


class Remote:
    """A folder of another file system.

    Args:
        url: Where it is, as fsspec understands it: `s3://bucket/run`. It need not be there yet.

    Attributes:
        url: The same without what may be a secret: user, password, query.

    Raises:
        PluginError: If it is no URL of a folder, or a package that fsspec needs for it is not installed.
    """

    def __init__(self, url: str) -> None:
        if not isinstance(url, str) or not _URL.match(url):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            found = repr(redacted(url)) if isinstance(url, str) else kind(url)  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(f"Checkpoint(mirror=…) takes a URL such as 's3://bucket/run', got {found:.200}")
        self.url = redacted(url)
        self._secrets = _secrets_in(url)
        self._files, self._root = self._opened(url)
        if not self._root.strip("/") or any(sign in self._root for sign in _MAGIC):
            raise PluginError(
                f"Checkpoint(mirror=…) takes the URL of a folder without the signs {' '.join(_MAGIC)}, got {self.url!r}"
            )

    def _opened(self, url: str) -> tuple[Any, str]:
        try:
            from fsspec import core  # noqa: PLC0415 - an extra is imported where it is used
        except ImportError:
            raise PluginError(
                "Checkpoint(mirror=…) needs fsspec; install it with: pip install 'heptad[mirror]'"
            ) from None
        try:
            files, root = cast("tuple[Any, str]", cast("Any", core).url_to_fs(url))
        except ImportError as error:
            raise PluginError(
                f"Checkpoint(mirror={self.url!r}) needs a package beside the extra heptad[mirror], which brings fsspec "
                f"alone: {self._safe(error)}"
            ) from None
        except Exception as error:  # each file system raises its own
            raise PluginError(f"Checkpoint(mirror={self.url!r}) cannot be opened: {self._safe(error)}") from None
        return files, root.rstrip("/")

    @property
    def local(self) -> str | None:
        """The path of the folder, if it is one of this machine's file system."""
        protocol: Any = self._files.protocol
        return self._root if "file" in ((protocol,) if isinstance(protocol, str) else protocol) else None

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder; none where it is not there.

        Raises:
            RemoteError: As all methods: if it is refused, or cannot be reached.
        """

        def listed() -> list[str]:
            self._files.invalidate_cache()  # of listings, which fsspec keeps
            found: list[str] = self._files.ls(self._path(folder), detail=False)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

        return self._asked("listing", folder, listed, [])

    def read(self, path: str, most: int) -> bytes | None:
        """Return the content of a file, of a longer one a byte more than `most`; `None` if it does not exist."""

        def content() -> bytes:
            with self._files.open(self._path(path), "rb") as file:
                return file.read(most + 1)

        return self._asked("reading", path, content, None)

    def pieces(self, path: str, piece: int) -> Iterator[bytes]:
        """Yield the content of a file, so many bytes at a time.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        with self._explained("reading", path, absent=True):
            file = self._files.open(self._path(path), "rb")
        try:
            while True:
                with self._explained("reading", path):
                    part: bytes = file.read(piece)
                if not part:
                    return
                yield part
        finally:
            with self._explained("closing", path):
                file.close()

    def write(self, path: str, pieces: Iterable[bytes]) -> None:
        """Write a file, in place of one that is there; an error in the pieces leaves part of it."""
        with self._explained("writing", path):
            file = self._files.open(self._path(path), "wb")
        try:
            for piece in pieces:
                with self._explained("writing", path):
                    file.write(piece)
        finally:
            with self._explained("writing", path):
                file.close()

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes; `None` if it does not exist."""
        return self._asked("looking for", path, lambda: cast("int", self._files.info(self._path(path))["size"]), None)

    def make_folder(self, path: str) -> None:
        """Make a folder, and those above it, where they are missing; many file systems have none."""
        with self._explained("making", path):
            self._files.makedirs(self._path(path), exist_ok=True)

    def move(self, source: str, target: str) -> None:
        """Give a file another name, under which it is whole or not there."""
        with self._explained("writing", target):
            self._files.mv(self._path(source), self._path(target))

    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""
        self._asked("removing", path, lambda: self._files.rm_file(self._path(path)), None)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder; many file systems have none."""
        with suppress(Exception):  # each file system raises its own; a folder that stays harms nobody
            self._files.rmdir(self._path(path))

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _asked(self, doing: str, path: str, ask: Callable[[], T], otherwise: T) -> T:
        """Return an answer, or another one where the file or folder is not there."""
        try:
            with self._explained(doing, path, absent=True):
                return ask()
        except FileNotFoundError:
            return otherwise

    @contextmanager
    def _explained(self, doing: str, path: str, *, absent: bool = False) -> Generator[None, None, None]:
        """Raise an error as a `RemoteError` without its cause, which may hold credentials.

        Where something may be `absent`, the error that says so stays what it is.
        """
        try:
            yield
        except Exception as error:
            if absent and isinstance(error, FileNotFoundError):
                raise
            place = f"{self.url}/{path}" if path else self.url
            raise RemoteError(f"{doing} {place} failed: {self._safe(error)}") from None

    def _safe(self, error: BaseException) -> str:
        """Return an error in a line, without what may be a secret."""
        text = redacted(in_a_line(error))
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text


def redacted(text: str) -> str:
    """Return a text with user, password and query of the URLs in it replaced."""
    return " ".join(
        _QUERY.sub(_HIDDEN, _LOGIN.sub(_HIDDEN, word)) if "://" in word else word for word in text.split(" ")
    )


def _secrets_in(url: str) -> list[str]:
    """Return what of a URL may be a secret, as it stands there and unquoted, the longest first."""
    found: set[str] = set()
    for login in _LOGIN.findall(url):
        found |= {login, *login.split(":", 1)}
    for query in _QUERY.findall(url):
        found |= {query, *(part.partition("=")[2] for part in re.split("[&#]", query))}
    found |= {unquote(secret) for secret in found}
    return sorted((secret for secret in found if len(secret) >= _LEAST_SECRET), key=len, reverse=True)
