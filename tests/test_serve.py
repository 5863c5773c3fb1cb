"""`heptad serve`: who may ask, what is answered, and that it follows a run."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from builders import batches, small_engine
from heptad import TransitionLog
from heptad.cli.main import main
from heptad.report import server
from heptad.report.server import LivePage, ReportServer
from heptad_plugins import Journal


@pytest.fixture
def engine(tmp_path: Path) -> Generator[Any]:
    """An engine with a journal, ten turns after its start."""
    made = small_engine(batches(6), [Journal(tmp_path / "run.journal", flush_every=1)], epochs=3)
    for _ in range(10):
        made.advance()
    yield made
    made.close()


@pytest.fixture
def served(engine: Any, tmp_path: Path) -> Generator[ReportServer]:
    """A server of its page, which listens."""
    found = ReportServer(LivePage([TransitionLog.load(tmp_path / "run.journal")]))
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def ask(served: ReportServer, what: str = "", host: str | None = None, **more: Any) -> tuple[int, bytes, Any]:
    """Return status, body and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    path = more.pop("path", f"/{served.token}/{what}")
    connection.request(more.pop("method", "GET"), path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def test_the_page_is_that_of_the_report(served: ReportServer):
    status, body, headers = ask(served)
    assert status == 200
    assert body.startswith(b"<!doctype html>")
    assert b"connect-src &#39;self&#39;" in body
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("path", ["/", "/page", "//", "/../", "/x/", "/%00/", "/%c3%a9/"])
def test_without_the_token_nothing_is_found(served: ReportServer, path: str):
    assert ask(served, path=path)[:2] == (404, b"not found\n")


@pytest.mark.parametrize("what", ["etc/passwd", "../", "page/", "run.journal"])
def test_with_the_token_there_is_nothing_else(served: ReportServer, what: str):
    assert ask(served, what)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""])
def test_another_host_is_refused(served: ReportServer, host: str):
    """A page of the web whose name leads here has its own name in the header."""
    assert ask(served, host=host.format(port=served.port))[0] == 421
    assert ask(served, host=f"localhost:{served.port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_nothing_but_reading_is_known(served: ReportServer, method: str):
    assert ask(served, method=method)[0] == 501


def test_it_listens_on_this_machine_alone(served: ReportServer):
    assert served.server_address[0] == "127.0.0.1"
    others = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for other in others - {"127.0.0.1"}:
        with pytest.raises(OSError):
            socket.create_connection((other, served.port), timeout=1)


def test_turns_are_given_one_by_one(served: ReportServer, engine: Any):
    found = json.loads(ask(served, "turns?run=0&first=2&end=8")[1])
    assert (found["first"], found["count"]) == (2, 6)
    assert ask(served, "explain?run=0&seq=5")[1].decode() == str(engine.current.log.explain(5))


@pytest.mark.parametrize(
    "what",
    [
        "turns?run=0&first=0&end=40000",
        "turns?run=0&first=-1&end=3",
        "turns?run=1&first=0&end=3",
        "turns?run=0&first=3&end=3",
        "turns?run=x&first=0&end=3",
        "turns",
        "explain?run=0",
        "explain?run=0&seq=1e3",
        "page?since=",
        "page?" + "&".join(f"a{number}=1" for number in range(50)),
    ],
)
def test_what_makes_no_sense_is_refused(served: ReportServer, what: str):
    assert ask(served, what)[0] == 400


def test_it_follows_the_run(served: ReportServer, engine: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(server, "SHARE", 0)
    body = ask(served)[1]
    assert b'"end":10' in body
    assert b'"made":1' in body
    assert ask(served, "page?since=1")[0] == 204
    for _ in range(5):
        engine.advance()
    deadline = time.monotonic() + 20
    while (found := ask(served, "page?since=1"))[0] == 204:
        assert time.monotonic() < deadline
    assert b'"end":1' in found[1]
    assert b'"made":2' in found[1]
    assert ask(served, "page?since=1")[0] == 200


def test_a_run_that_is_killed_is_shown_as_that(served: ReportServer, monkeypatch: pytest.MonkeyPatch):
    """Nothing is written then, and the page is made anew for it: once."""
    monkeypatch.setattr(server, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(server, "SHARE", 0)
    assert b"<span>running: " in ask(served)[1]
    assert ask(served, "page?since=1")[0] == 204
    for room in ("report.server", "history.judge"):
        monkeypatch.setattr(f"heptad.{room}.presence", lambda writer: "gone")
    status, page, _ = ask(served, "page?since=1")
    assert (status, page.count(b"<span>killed: ")) == (200, 1)
    assert ask(served, "page?since=2")[0] == 204


def test_the_page_is_not_made_more_often_than_it_may(served: ReportServer, engine: Any):
    ask(served)
    for _ in range(5):
        engine.advance()
    began = time.monotonic()
    assert ask(served, "page?since=1")[0] == 204
    assert time.monotonic() - began < server.LEAST_SECONDS


@pytest.mark.usefixtures("ctrl_c")
def test_the_command_serves_until_ctrl_c(engine: Any, tmp_path: Path):
    command = [sys.executable, "-m", "heptad", "serve", str(tmp_path / "run.journal")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        host, _, token = address.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("GET", f"/{token}")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]


def test_a_port_that_is_taken_or_none_is_refused(served: ReportServer, tmp_path: Path, capsys: Any):
    path = str(tmp_path / "run.journal")
    assert main(["serve", path, "--port", "70000"]) == 2
    assert "takes a number up to 65,535, got 70,000" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", path, "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened on" in capsys.readouterr().err
