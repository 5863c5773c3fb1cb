"""Pages that are read with a task in hand: their commands answer, and the shell script for SLURM pauses a run."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

import heptad
import heptad_plugins
from heptad import LogError, TransitionLog
from heptad.cli.main import main
from heptad.plugin import EvaluationOptions, Resume
from pages import Session

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ["debugging.md", "slurm.md"])
def test_the_commands_on_a_page_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each stands below the Python that has written its journal; `diff` without `--summary` would end with 1."""
    monkeypatch.chdir(tmp_path)
    session = Session(DOCS / name)
    ran = 0
    for block in session.blocks("python|console"):
        if block[1] == "python":
            session.run(block)
            continue
        for line in block[2].splitlines():
            dollar, program, *arguments = shlex.split(line)
            assert (dollar, program) == ("$", "heptad")
            capsys.readouterr()
            assert main(arguments) == 0, line
            assert capsys.readouterr().out, line
            ran += 1
    assert ran >= 2


def commands_of_a_cluster(folder: Path) -> None:
    """Write stand-ins: `srun` becomes what it is given to start, `scontrol` keeps what it was asked for."""
    for name, script in (
        ("srun", 'exec "$@"'),
        ("scontrol", f'echo "$@" >> "{folder}/asked"'),
        ("python", f'exec "{sys.executable}" "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)


def epochs_in(journal: Path) -> int:
    """Return how many epochs have ended, as far as the file says by now."""
    try:
        return TransitionLog.load(journal).counts().get("after_epoch", 0)
    except (LogError, FileNotFoundError):
        return 0


def test_the_script_for_slurm_pauses_a_run_and_a_second_job_continues_it(tmp_path: Path):
    """SIGTERM to the shell alone: stored, put back into the queue once; the next job begins where it was."""
    commands_of_a_cluster(tmp_path)
    text = (DOCS / "slurm.md").read_text(encoding="utf-8")
    (job,) = re.findall(r"## One process\n\n```bash\n(.*?)```", text, re.DOTALL)
    (train,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "job.sh").write_text(job, encoding="utf-8")
    (tmp_path / "train.py").write_text(train, encoding="utf-8")
    journal = tmp_path / "runs" / "slurm" / "run.journal"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def submit(epochs: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "job.sh"], cwd=tmp_path, env={**environment, "EPOCHS": str(epochs)}, stdout=subprocess.DEVNULL
        )

    first = submit(1_000_000)
    deadline = time.monotonic() + 60
    while epochs_in(journal) == 0:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    paused = TransitionLog.load(journal)[-1]

    assert submit(paused.epoch + 1).wait(timeout=60) == 0
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    log = TransitionLog.load(journal)
    (resumed,) = [note for note in log.notes("resume") if isinstance(note, Resume) and note.checkpoint]
    assert resumed.seq == paused.seq + 1  # the turn in which it continues
    assert log[-1].dest == "finished"


def signature_of(name: str) -> set[str] | None:
    """Return the names of the arguments that a public class takes; `None` for what is not one of them."""
    thing = getattr(heptad, name, None) or getattr(heptad_plugins, name, None)
    if not isinstance(thing, type):
        return None
    if issubclass(thing, BaseModel):
        return set(thing.model_fields)
    return {*inspect.signature(thing).parameters, *EvaluationOptions.__annotations__}


@pytest.mark.parametrize("name", ["where.md", "faq.md", "glossary.md", "metrics.md", "slurm.md", "debugging.md"])
def test_what_a_page_names_is_there(name: str):
    """In code in its text: arguments of public classes, attributes of a run and of an engine."""
    text = re.sub(r"```.*?```", "", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    column = {"where.md": -1, "glossary.md": 0}.get(name)  # the others of these are words of other trainers
    ours = [row if column is None else row.rsplit(" | ", 1)[column] for row in text.splitlines()]
    spans = [span for span in re.findall(r"`([^`]+)`", "\n".join(ours)) if "/" not in span]
    unknown: list[str] = []
    for span in spans:
        for called, arguments in re.findall(r"\b([A-Z]\w+)\(([^()]*)", span):
            known = signature_of(called)
            if known is not None:
                unknown += [f"{called}({one}=)" for one in re.findall(r"(\w+)=", arguments) if one not in known]
        for owner, attribute in re.findall(r"\b(run|engine)\.(\w+)", span):
            if not hasattr(heptad.Run if owner == "run" else heptad.Engine, attribute):
                unknown.append(f"{owner}.{attribute}")
        for owner, attribute in re.findall(r"\b(Components|RunConfig)\.(\w+)", span):
            if attribute not in (signature_of(owner) or ()) and not hasattr(getattr(heptad, owner), attribute):
                unknown.append(f"{owner}.{attribute}")
    assert unknown == []
    assert len(spans) > 10


def test_each_plugin_that_serves_for_something_elsewhere_exists():
    """The second column of `where.md`: a name in capitals is public here, or torch's."""
    rows = re.findall(r"^\| `.* \| (.+) \|$", (DOCS / "where.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {word for row in rows for span in re.findall(r"`([^`]+)`", row) for word in re.findall(r"\b[A-Z]\w+", span)}
    theirs = {"CrossEntropyLoss", "False", "True", "RUN"}
    assert named - theirs <= {*heptad.__all__, *heptad_plugins.__all__}
    assert len(rows) > 100
