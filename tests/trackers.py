"""Runs whose values are sent to a tracker, and what is in its store afterwards, read by the tracker's own means.

As a program it is such a run, in a process that is killed: `python trackers.py TOOL FOLDER UPDATE [no checkpoint]`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from builders import batches, small_engine
from heptad import Engine, Plugin, Run
from heptad_plugins import Checkpoint, Evaluate, MLflowLogger, TrackioLogger, WandbLogger
from programs import environment

TOOLS = ("mlflow", "wandb", "trackio")
LOGGERS = {"mlflow": MLflowLogger, "wandb": WandbLogger, "trackio": TrackioLogger}
Points = dict[str, list[tuple[int, float]]]
"""(step, value) by name, in the order of the steps."""


def logger(tool: str, folder: Path, **options: Any) -> Any:
    """Return a plugin that writes below a folder."""
    place: dict[str, Any] = {"mlflow": {"uri": store_of(folder)}, "wandb": {"directory": folder}, "trackio": {}}[tool]
    return LOGGERS[tool](project_of(folder), **{**place, **options})


def store_of(folder: Path) -> str:
    """Return the URI of MLflow's store."""
    return f"file://{folder}/mlruns"


def project_of(folder: Path) -> str:
    """Return the name of an experiment or project: Trackio has one store for all tests."""
    return f"{folder.parent.name}-{folder.name}"


def points(tool: str, folder: Path) -> list[Points]:
    """Return what each run in the store holds."""
    return {"mlflow": _mlflow, "wandb": _wandb, "trackio": _trackio}[tool](folder)


def _mlflow(folder: Path, uri: str | None = None) -> list[Points]:
    client, runs = mlflow_runs(folder, uri)
    return [
        {
            name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        for run in runs
    ]


def mlflow_runs(folder: Path, uri: str | None = None) -> tuple[Any, list[Any]]:
    """Return a client, and the runs of the experiment, the oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or store_of(folder))
    experiment = client.get_experiment_by_name(project_of(folder))
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]) if experiment else []
    return client, list(runs)


def wandb_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each run by id, over all files of it, as W&B's own protocol buffers have them."""
    ends = time.monotonic() + 60
    while True:  # W&B's own process writes the end of a file after it has said that it is done
        found: dict[str, list[dict[str, Any]]] = {}
        whole = True
        for path in wandb_files(folder):
            records = wandb_records(path)
            left = time.time() - path.stat().st_mtime > 4  # by a process that was killed
            whole = whole and (left or any(record.WhichOneof("record_type") == "exit" for record in records))
            rows = found.setdefault(path.stem.removeprefix("run-"), [])
            for record in records:
                if record.WhichOneof("record_type") == "history":
                    row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                    rows.append({**row, "_step": record.history.step.num})
        if whole or time.monotonic() > ends:
            return found
        time.sleep(0.05)


def wandb_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of the runs below a folder, as their files have it."""
    wandb_rows(folder)
    return {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for path in wandb_files(folder)
        for record in wandb_records(path)
        for item in record.config.update
    }


def wandb_files(folder: Path) -> list[Path]:
    """Return the files of W&B's runs, the oldest first."""
    return sorted((folder / "wandb").glob("*run-*-*/run-*.wandb"), key=lambda path: path.parent.name)


def wandb_records(path: Path) -> list[Any]:
    """Return the records of a file of W&B's."""
    from wandb.proto import wandb_internal_pb2

    from heptad_plugins._wandb_file import records_in

    found: list[Any] = []
    for content in records_in(path.read_bytes()):
        found.append(wandb_internal_pb2.Record())
        found[-1].ParseFromString(content)
    return found


def uploaded(tool: str, folder: Path) -> set[str]:
    """Return the names of the checkpoints that the tracker has, which in W&B and Trackio are aliases of versions."""
    return {name for name in _artifacts(tool, folder) if name.startswith("checkpoint-")}


def _artifacts(tool: str, folder: Path) -> set[str]:
    if tool == "mlflow":
        _, (run,) = mlflow_runs(folder)
        return {path.name for path in Path(urlsplit(run.info.artifact_uri).path, "checkpoints").glob("*")}
    if tool == "trackio":
        from trackio.sqlite_storage import SQLiteStorage

        return {alias for row in SQLiteStorage.get_artifacts(project_of(folder)) for alias in row["aliases"]}
    wandb_rows(folder)
    records = [record for path in wandb_files(folder) for record in wandb_records(path)]
    return {alias for record in records for alias in record.artifact.aliases}


def _wandb(folder: Path) -> list[Points]:
    runs: list[Points] = []
    for rows in wandb_rows(folder).values():
        made: Points = {}
        for row in rows:
            for name, value in row.items():
                if not name.startswith("_") and name != "update":
                    made.setdefault(name, []).append((row["update"], float(value)))
        runs.append({name: sorted(values) for name, values in made.items()})
    return runs


def _trackio(folder: Path) -> list[Points]:
    from trackio.sqlite_storage import SQLiteStorage

    runs: list[Points] = []
    for name in SQLiteStorage.get_runs(project_of(folder)):
        made: Points = {}
        for row in SQLiteStorage.get_logs(project_of(folder), name):
            for key, value in row.items():
                if key not in ("step", "timestamp"):
                    made.setdefault(key, []).append((row["step"], float(value)))
        runs.append({key: sorted(values) for key, values in made.items()})
    return runs


def recorded(run: Run) -> Points:
    """Return what a run has recorded."""
    made: Points = {}
    for value in run.records():
        made.setdefault(value.name, []).append((value.update, value.value))
    return {name: sorted(values) for name, values in made.items()}


def engine_of_ten(
    tool: str, folder: Path, *, checkpoint: bool = True, act: Callable[[Run], None] | None = None, **options: Any
) -> Engine:
    """Return an engine of ten updates with an evaluation after each fourth, behind whose checkpoint it comes."""
    plugins: list[Plugin] = [logger(tool, folder, **options)]
    if checkpoint:
        plugins.append(Checkpoint(folder / "checkpoints", at="optimizer_update", every=4))
    plugins.append(Evaluate(batches(1), at="optimizer_update", every=4))
    engine = small_engine(10, plugins)
    if act is not None:
        engine.on_exit("optimizer_update")(act)
    return engine


def killed(tool: str, folder: Path, update: int, *without: str) -> None:
    """Let a process be killed in an update."""
    done = in_a_process([__file__, tool, str(folder), str(update), *without])
    assert done.returncode == -signal.SIGKILL, done.stderr


def in_a_process(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python, with variables of the environment; W&B's process of this one is none of its."""
    given = {name: value for name, value in environment(**variables).items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=given, timeout=120)


@contextmanager
def silent_server() -> Generator[int]:
    """Give the port of a server that accepts and says nothing."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen(50)
        yield made.getsockname()[1]


def main(tool: str, folder: str, update: str, *without: str) -> None:
    """Run until an update, and be killed there when the tracker has what was sent."""

    def kill(run: Run) -> None:
        if run.update == int(update):
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)

    engine_of_ten(tool, Path(folder), checkpoint=not without, act=kill).run(resume="auto" if not without else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
