"""`heptad serve`: the page of a run that goes on, on this machine alone, by the standard library's server.

It owns who may ask and how often the page is made anew; the page is `page`'s. Only `heptad serve` starts one.

- It listens on 127.0.0.1. The address holds a random token; another path is not found, another Host header is refused,
  so that no page of the web can reach it under a name of its own (DNS rebinding).
- The run is not disturbed: a journal is read without a lock, the process gets what others leave of the processors, and
  the page is made anew at most so often that it takes a tenth of one.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from secrets import compare_digest, token_urlsafe
from typing import cast
from urllib.parse import parse_qs, urlsplit

from heptad.errors import EngineError
from heptad.history.journal.presence import Presence, presence
from heptad.history.journal.reader import FileSource
from heptad.history.query import TransitionLog
from heptad.report.gathered import gathered
from heptad.report.page import named, rendered
from heptad.report.turns import AT_ONCE, stretch_of_turns
from heptad.report.words import harmless

HOST = "127.0.0.1"

LEAST_SECONDS = 2.0
"""Between two makings of the page, at least."""

SHARE = 10
"""The page is made anew after this many times the time that it took before."""

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class LivePage:
    """The page of some runs, made anew when they have gone on and enough time has passed. Any thread may ask.

    Args:
        logs: Their logs, of journals.
    """

    def __init__(self, logs: Sequence[TransitionLog]) -> None:
        self._logs = list(logs)
        self._labels = named(self._logs)
        self._lock = threading.Lock()
        self._page = b""
        self._made = 0
        self._shown: list[tuple[int, Presence]] = []
        self._due = 0.0

    def page(self) -> tuple[bytes, int]:
        """Return the page as it was made last, and its number, from 1 on; make it anew where that is due."""
        with self._lock:
            if not self._page or (time.monotonic() >= self._due and self._now() != self._shown):
                began, shown = time.monotonic(), self._now()
                runs = [gathered(log, label) for log, label in zip(self._logs, self._labels, strict=True)]
                self._page = rendered(runs, live="./", made=self._made + 1)
                self._made, self._shown = self._made + 1, shown
                now = time.monotonic()
                self._due = now + max(LEAST_SECONDS, SHARE * (now - began))
            return self._page, self._made

    def news(self, since: int) -> bytes | None:
        """Return the page if it is another one than that of this number, else nothing."""
        page, number = self.page()
        return page if since != number else None

    def turns(self, run: int, first: int, end: int) -> bytes:
        """Return turns one by one, as JSON.

        Raises:
            ValueError: If there is no such run, or there are no such turns, or too many of them.
        """
        log = self._log(run)
        view = log.source.view()
        if not view.first <= first < end <= view.end or end - first > AT_ONCE:
            raise ValueError(f"turns from {first} to {end}: expected at most {AT_ONCE:,} from #{view.first} on")
        return json.dumps(stretch_of_turns(log.source, view, first, end)).encode()

    def explain(self, run: int, seq: int) -> bytes:
        """Return why a transition took its arc, in words.

        Raises:
            ValueError: If there is no such run.
            EngineError: If it has no such transition.
        """
        return harmless(str(self._log(run).explain(seq)), 100_000).encode("utf-8", "backslashreplace")

    def _log(self, run: int) -> TransitionLog:
        if not 0 <= run < len(self._logs):
            raise ValueError(f"there is no run {run}")
        return self._logs[run]

    def _now(self) -> list[tuple[int, Presence]]:
        """Return how far the logs reach, and whether who writes them is there: a killed run is to be shown as that."""
        sources = [cast("FileSource", log.source) for log in self._logs]
        return [(source.view().end, presence(source.writer)) for source in sources]


class ReportServer(ThreadingHTTPServer):
    """Shows a page to browsers on this machine that know the token.

    Args:
        page: The page.
        port: The port; 0 for any that is free.

    Raises:
        OSError: If the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, page: LivePage, port: int = 0) -> None:
        self.token = token_urlsafe(24)
        self.page = page
        super().__init__((HOST, port), _Handler)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """The address to open."""
        return f"http://{HOST}:{self.port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: ReportServer  # pyright: ignore[reportIncompatibleVariableOverride] - it is made by that one alone
    server_version = "heptad"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer with the page, some turns, or an explanation."""
        if self.headers.get_all("Host", []) not in ([f"{name}:{self.server.port}"] for name in (HOST, "localhost")):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"this host is not served here\n")
            return
        try:
            asked = urlsplit(self.path)
            given = {name: words[-1] for name, words in parse_qs(asked.query, max_num_fields=8).items()}
        except ValueError:
            self._send(HTTPStatus.BAD_REQUEST, b"no such address\n")
            return
        token, _, what = asked.path.removeprefix("/").partition("/")
        known = compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        answer = {"": self._page, "page": self._news, "turns": self._turns, "explain": self._explain}.get(what)
        if not known or answer is None:
            self._send(HTTPStatus.NOT_FOUND, b"not found\n")
            return
        self._answer(answer, given)

    def _answer(self, answer: Callable[[Mapping[str, str]], None], given: Mapping[str, str]) -> None:
        try:
            answer(given)
        except (KeyError, ValueError) as error:
            self._send(HTTPStatus.BAD_REQUEST, f"{harmless(error, 300)}\n".encode("utf-8", "backslashreplace"))
        except (EngineError, OSError) as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{harmless(error, 300)}\n".encode("utf-8", "backslashreplace"))

    def _page(self, given: Mapping[str, str]) -> None:
        del given
        self._send(HTTPStatus.OK, self.server.page.page()[0], "text/html")

    def _news(self, given: Mapping[str, str]) -> None:
        page = self.server.page.news(int(given["since"]))
        if page is None:
            self._send(HTTPStatus.NO_CONTENT, b"")
        else:
            self._send(HTTPStatus.OK, page, "text/html")

    def _turns(self, given: Mapping[str, str]) -> None:
        run, first, end = (int(given[name]) for name in ("run", "first", "end"))
        self._send(HTTPStatus.OK, self.server.page.turns(run, first, end), "application/json")

    def _explain(self, given: Mapping[str, str]) -> None:
        self._send(HTTPStatus.OK, self.server.page.explain(int(given["run"]), int(given["seq"])))

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the browser has gone on
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: an address holds the token."""


def step_back() -> None:
    """Give this process the lowest priority: it gets what the run and all others leave of the processors."""
    with suppress(OSError, AttributeError):
        os.nice(19)
    with suppress(OSError, AttributeError):  # Linux alone
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
