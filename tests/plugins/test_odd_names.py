"""Folders and files with names that are no UTF-8, have quotes, newlines or signs of a URI in them, or are too long."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from heptad import (
    CheckpointError,
    Components,
    Engine,
    LogError,
    Plugin,
    PluginError,
    RunConfig,
    TransitionLog,
    load_weights,
)
from heptad.cli.main import main
from heptad_plugins import Checkpoint, CSVLogger, Journal, TensorBoardLogger

ODD = [b"caf\xe9", b'it\'s "%20?#&mode=memory"\n\r {0}%s,*[?]', b"x" * 200, "日本".encode()]
TOO_LONG = ["x" * 256, "/".join(["d" * 250] * 17)]
NO_NAMES = ["a\0b", "\ud800"]


def engine(*plugins: Plugin) -> Engine:
    """Return an engine with these plugins."""
    torch.manual_seed(0)
    components = Components(
        network=nn.Linear(4, 3),
        loader=[(torch.ones(2, 4), torch.zeros(2).long())] * 4,
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )
    return Engine(components, RunConfig(epochs=1, seed=1), plugins)


def outcome(folder: Path, odd: str, paused: bool) -> list[str]:
    """Drive a run, with or without a pause, and return what its files say."""

    def built() -> Engine:
        writers = [Checkpoint(folder / odd / odd, at="after_step"), CSVLogger(folder / odd / f"{odd}.csv")]
        writers += [Journal(folder / odd / f"{odd}.db")]
        return engine(*writers, *([TensorBoardLogger(folder / odd / "board")] if odd.isprintable() else []))

    if paused:
        built().run(until=lambda run: run.step == 2)
    assert bool(built().run(resume="auto" if paused else None).resumed_from) is paused
    network = nn.Linear(4, 3)
    load_weights(folder / odd / odd, network)
    log = TransitionLog.load(folder / odd / f"{odd}.db")
    assert main(["show", str(folder / odd / f"{odd}.db")]) == 0
    turns = [f"{turn.source} {turn.dest}" for turn in log]
    return [*turns, (folder / odd / f"{odd}.csv").read_text(), str(network.state_dict())]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what a run writes that was not paused, in a folder of a plain name."""
    return outcome(tmp_path_factory.mktemp("straight"), "plain", False)


@pytest.mark.parametrize("name", ODD)
def test_a_run_is_written_and_resumed_whatever_its_files_are_called(name: bytes, straight: list[str], tmp_path: Path):
    """By all plugins that write files."""
    assert outcome(tmp_path, os.fsdecode(name), True) == straight


PLUGINS: list[Callable[[Any], Plugin]] = [Checkpoint, CSVLogger, Journal, TensorBoardLogger]


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_name_that_is_too_long_is_refused_when_the_run_opens(name: str, tmp_path: Path):
    """In words."""
    for plugin in PLUGINS:
        with pytest.raises(CheckpointError if plugin is Checkpoint else PluginError, match=r"[Ff]ile name too long"):
            engine(plugin(tmp_path / name)).run()


def test_a_path_that_is_too_long_for_sqlite_alone_is_named(tmp_path: Path):
    """It only says that it is unable to open the file."""
    engine(Journal(tmp_path / "short")).run()
    path = tmp_path / ("x" * 200) / ("y" * 200) / ("z" * 100) / "run.journal"
    with pytest.raises(PluginError, match=r"its path has \d+ bytes, and SQLite opens none of more than 500"):
        engine(Journal(path)).run()
    shutil.copy(tmp_path / "short", path)
    with pytest.raises(LogError, match=r"its path has \d+ bytes, and SQLite opens none of more than 500"):
        TransitionLog.load(path)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_no_file_can_have_is_refused_when_a_plugin_is_built(name: str, tmp_path: Path):
    """Not as an error of Python's, in the middle of a run."""
    for plugin in PLUGINS:
        with pytest.raises(PluginError, match=r"no (file|directory) can have the name '.*\\"):
            plugin(tmp_path / name)


def test_tensorboard_takes_only_names_that_are_utf8(tmp_path: Path):
    with pytest.raises(PluginError, match=r"not UTF-8, as in '.*caf\\udce9'; name another"):
        TensorBoardLogger(tmp_path / os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize("name", [*TOO_LONG, *NO_NAMES, ""])
def test_what_no_file_can_be_called_is_not_read(name: str):
    """By each reader, with its own kind of error; an empty name is not the working directory."""
    with pytest.raises(CheckpointError, match="no directory of checkpoints can have the name"):
        engine().run(resume=name)
    with pytest.raises(CheckpointError, match="no directory of checkpoints can have the name"):
        load_weights(name, nn.Linear(4, 3))
    with pytest.raises(LogError, match="cannot be read"):
        TransitionLog.load(name)
    assert main(["show", name]) == 2
