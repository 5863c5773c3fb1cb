"""Where a run comes from: the command line of its process, the commit of its program, and whether that was changed.

Called once by a process that begins to write a journal, and by who reports on a run in its own process.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

SECONDS = 2.0
"""How long git is waited for: a run does not wait for a slow disk to say what it was started from."""

_LONGEST = 4_000
"""Characters of a command line that are kept."""


def origin() -> dict[str, str]:
    """Return `argv`, and where the program lies in a git repository, `commit` and `clean`: yes, no or unknown."""
    line = shlex.join(sys.argv)
    return {"argv": line[:_LONGEST], **_commit(_folder())}


def _folder() -> str:
    """Return the folder of the program, or the one that the process is in where it has no file."""
    program = Path(sys.argv[0] if sys.argv else "")
    try:
        return str(program.resolve().parent if program.is_file() else Path.cwd())
    except OSError:  # the folder is gone
        return ""


@cache
def _commit(folder: str) -> dict[str, str]:
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "clean": "unknown" if changed is None else "no" if changed else "yes"}


def _git(folder: str, *words: str) -> str | None:
    """Return what git prints; `None` where it cannot say. It writes nothing and starts no helper of a repository."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", folder, *words]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
