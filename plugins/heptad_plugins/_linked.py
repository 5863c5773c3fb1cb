"""A copy of a checkpoint that stays while it is uploaded, though the checkpoint is removed meanwhile."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def linked(folder: Path) -> Generator[Path | None, None, None]:
    """Give a folder of the same name with links to the files of another one, or copies where there can be no links.

    Args:
        folder: A checkpoint. Its files are not changed once it is there, only removed.

    Yields:
        The folder, for the length of the `with` block; `None` if the checkpoint was removed before it was complete.
    """
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=folder.parent.parent) as temporary:
        copy = Path(temporary) / folder.name
        try:
            shutil.copytree(folder, copy, copy_function=_link)
        except (FileNotFoundError, shutil.Error):
            if folder.exists() and (folder / "manifest.json").exists():
                raise
            yield None
            return
        yield copy if (copy / "manifest.json").exists() else None


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copy2(source, target)
    return target
