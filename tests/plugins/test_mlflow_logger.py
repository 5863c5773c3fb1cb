"""`MLflowLogger` against a real server on 127.0.0.1 that is killed and comes back; names, parameters and statuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import trackers
from builders import Planned, batches, small_engine
from heptad import Run
from heptad_plugins import Checkpoint, Evaluate, MLflowLogger
from heptad_plugins._outbox import Outbox
from heptad_plugins.mlflow_logger import name_in_mlflow
from trackers import logger, mlflow_runs, recorded

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """An MLflow server over a database in a folder, as a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, if it does not run; what it takes is an import of MLflow, and making a database the first time."""
        if self.process is not None:
            return
        command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True
            )

    def wait(self) -> None:
        ends = time.monotonic() + 120
        while not self._listens():
            assert time.monotonic() < ends, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Kill it with the processes that it has started; when this returns, nobody listens at the port any more."""
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        ends = time.monotonic() + 60
        while self._listens():  # its workers are nobody's to wait for, and on a busy machine they outlive it
            assert time.monotonic() < ends, "a worker of the server still listens"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One database for all tests; each starts the server when it needs it."""
    try:
        distribution("mlflow")
    except PackageNotFoundError:
        pytest.skip("mlflow-skinny has no server")
    made = Server(tmp_path_factory.mktemp("server"))
    try:
        yield made
    finally:
        made.kill()


def test_a_server_that_comes_late_is_killed_and_comes_back_gets_everything(server: Server, tmp_path: Path):
    """The run goes on meanwhile, and the log says what became of the server; checkpoints are artifacts."""
    folder = tmp_path / "checkpoints"
    plugin = MLflowLogger(trackers.project_of(tmp_path), uri=server.uri, wait=120, checkpoints=folder)
    engine = small_engine(6, [plugin, Evaluate(batches(1)), Checkpoint(folder)])
    server.kill()

    def wait_for(what: Callable[[Outbox], object]) -> None:
        ends = time.monotonic() + 120
        assert plugin._outbox is not None
        while not what(plugin._outbox):
            assert time.monotonic() < ends
            time.sleep(0.05)

    @engine.on_exit("optimizer_update")
    def act(run: Run) -> None:
        if run.update == 2:
            wait_for(lambda outbox: outbox.trouble)
            server.start()
            wait_for(lambda outbox: not outbox._items)  # else MLflow itself would try again, for minutes
            server.kill()
        if run.update == 4:
            wait_for(lambda outbox: outbox.trouble)
            server.start()

    run = engine.run()
    notes = [note.text.removeprefix("MLflowLogger: ") for note in run.log.notes("note")]
    assert [text.partition(":")[0] for text in notes] == ["cannot be reached", "can be reached again"] * 2
    assert trackers._mlflow(tmp_path, server.uri) == [recorded(run)]
    client, (found,) = mlflow_runs(tmp_path, server.uri)
    assert found.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(found.info.run_id, "checkpoints")] == [
        "checkpoints/checkpoint-00000001"
    ]


def test_without_a_server_the_run_ends_in_time_and_says_what_is_unsent(tmp_path: Path):
    """A warning at the end, with a count; the run has its own result."""
    engine = small_engine(4, [MLflowLogger("a", uri=f"http://127.0.0.1:{free_port()}", wait=0.3)])
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"10 values and files could not be sent within 0.3 s of .* \(Conn"):
        run = engine.run()
    assert run.state == "finished"
    assert time.monotonic() - began < 40  # MLflow alone tries for minutes
    assert any("could not be sent" in note.text for note in run.log.notes("note"))


def test_a_server_that_never_answers_stalls_no_update_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It accepts and is silent from the start: the log says so while the run goes on, and a warning when it ends."""
    monkeypatch.setattr("heptad_plugins._outbox._LONG", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    longest = [0.0]
    with trackers.silent_server() as port:
        plugin = MLflowLogger("a", uri=f"http://127.0.0.1:{port}", wait=0.3)
        engine = small_engine(4, [plugin])
        began = last = time.monotonic()

        @engine.on_exit("optimizer_update")
        def look(run: Run) -> None:
            nonlocal last
            longest.append(time.monotonic() - last)
            assert plugin._outbox is not None
            while plugin._outbox._since is None:  # the thread has not called the server yet
                time.sleep(0.05)
            time.sleep(0.2)
            last = time.monotonic()

        with pytest.warns(UserWarning, match=r"10 values and files could not be sent within 0.3 s .* \(no answer for"):
            run = engine.run()
        lasted = time.monotonic() - began
    assert run.state == "finished"
    assert max(longest) < 10  # a call that is waited for lasts 60 seconds
    assert lasted < 40
    (first, last_note) = [note.text for note in run.log.notes("note")]
    assert first.startswith("MLflowLogger: has not answered for ")
    assert "could not be sent" in last_note


def test_what_was_not_sent_before_a_pause_is_sent_after_it(server: Server, tmp_path: Path):
    """The server was away for the first half; none of it is missing."""
    plugin = MLflowLogger(trackers.project_of(tmp_path), uri=f"http://127.0.0.1:{free_port()}", wait=0.1)
    engine = small_engine(4, [plugin])
    with pytest.warns(UserWarning, match="could not be sent"):
        engine.run(until=lambda run: run.update == 2)
    server.start()
    server.wait()
    plugin._uri = server.uri
    plugin._wait = 60
    run = engine.run()
    assert trackers._mlflow(tmp_path, server.uri) == [recorded(run)]


def test_what_mlflow_refuses_ends_the_run_or_detaches_the_plugin(tmp_path: Path):
    """An experiment that was deleted is no outage."""
    client, _ = mlflow_runs(tmp_path)
    client.delete_experiment(client.create_experiment(trackers.project_of(tmp_path)))
    with pytest.raises(Exception, match=r"the experiment '.*' was deleted; restore it|could not be sent"):
        small_engine(2, [logger("mlflow", tmp_path)]).run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the values are unsent
        run = small_engine(2, [logger("mlflow", tmp_path, on_error="detach", wait=5)]).run()
    assert run.state == "finished"
    assert run.log.notes("detach")


@pytest.mark.parametrize(("ends", "status"), [("well", "FINISHED"), ("raises", "FAILED"), ("ctrl-c", "KILLED")])
def test_the_status_is_how_the_run_ended(ends: str, status: str, tmp_path: Path):
    engine = small_engine(3, [logger("mlflow", tmp_path)])

    @engine.on_exit("optimizer_update", every=2)
    def end(run: Run) -> None:
        if ends != "well":
            raise Planned if ends == "raises" else KeyboardInterrupt

    try:
        engine.run()
    except (Planned, KeyboardInterrupt):
        assert ends != "well"
    assert mlflow_runs(tmp_path)[1][0].info.status == status


def test_a_paused_run_is_scheduled_and_one_that_failed_can_be_continued(tmp_path: Path):
    """From its checkpoint, in the same run of MLflow, whatever its status."""
    engine = trackers.engine_of_ten("mlflow", tmp_path)
    engine.run(until=lambda run: run.update == 5)
    client, (paused,) = mlflow_runs(tmp_path)
    assert paused.info.status == "SCHEDULED"
    engine.close()
    client.set_terminated(paused.info.run_id, "FAILED")
    trackers.engine_of_ten("mlflow", tmp_path).run(resume="auto")
    (found,) = mlflow_runs(tmp_path)[1]
    assert (found.info.run_id, found.info.status) == (paused.info.run_id, "FINISHED")


def test_a_run_that_was_deleted_is_begun_anew(tmp_path: Path):
    stopped = trackers.engine_of_ten("mlflow", tmp_path)
    stopped.run(until=lambda run: run.update == 5)
    stopped.close()
    client, (deleted,) = mlflow_runs(tmp_path)
    client.delete_run(deleted.info.run_id)
    run = trackers.engine_of_ten("mlflow", tmp_path).run(resume="auto")
    assert trackers.points("mlflow", tmp_path) == [recorded(run)]
    assert any("another one gets all values" in note.text for note in run.log.notes("note"))


def test_parameters_and_tags_say_what_the_run_is(tmp_path: Path):
    """A value that is too long is cut; what a resumed run has changed is named in its log."""
    hparams = {"width": 32, "text": "x" * 7000, "a?b": True}
    small_engine(1, [logger("mlflow", tmp_path, hparams=hparams)], accumulation=1).run()
    (run,) = mlflow_runs(tmp_path)[1]
    parameters = run.data.params
    assert (parameters["config/accumulation"], parameters["optimizer_class"], parameters["optimizer/momentum"]) == (
        *("1", "SGD"),
        "0.9",
    )
    assert (parameters["width"], parameters["a_b"], len(parameters["text"])) == ("32", "True", 6000)
    assert {"version/torch", "version/python", "version/heptad", "argv", "heptad.run"} <= set(run.data.tags)
    assert {"version/torch", "version/python", "version/heptad", "argv"} <= set(parameters)
    assert parameters["version/torch"] == run.data.tags["version/torch"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("train/loss", "train/loss"), ("a@b", "a_b"), ("/a//b", "_/a/_/b"), ("../x", "_/x"), ("é 1.5:k-2", "é 1.5:k-2")],
)
def test_a_name_that_mlflow_forbids_is_changed_in_one_way(name: str, expected: str):
    assert name_in_mlflow(name) == expected


def test_long_names_stay_different():
    one, other = name_in_mlflow("x" * 300 + "a"), name_in_mlflow("x" * 300 + "b")
    assert len(one) == len(other) == 250
    assert one != other
