"""Write the inventories that the site links by, `docs/inventories/*.inv`: `.venv/bin/python tools/inventories.py`.

Sphinx would fetch the whole inventory of each project. The site is built without a network, so the names that the
reference uses stand here, by the page that each is on. Each is looked up in what is installed before it is written. A
name that is missing here is a warning of `make docs`, which names it.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from pydoc import locate

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "inventories"

HEAD = """\
# Sphinx inventory version 2
# Project: {}
# Version: {}
# The remainder of this file is compressed using zlib.
"""

PAGES = {
    "python": {
        "library/exceptions.html": "ArithmeticError AttributeError BaseException Exception FileExistsError "
        "FileNotFoundError ImportError IndexError KeyError KeyboardInterrupt LookupError OSError RuntimeError "
        "StopIteration SystemExit TypeError ValueError",
        "library/stdtypes.html": "bool bytes dict frozenset list memoryview set str tuple",
        "library/functions.html": "float int object property type",
        "library/typing.html": "typing.Any typing.Literal typing.NamedTuple typing.Protocol typing.Self typing.TypeVar",
        "library/collections.html": "collections.Counter collections.deque",
        "library/collections.abc.html": "collections.abc.Callable collections.abc.Collection collections.abc.Generator "
        "collections.abc.Iterable collections.abc.Iterator collections.abc.Mapping collections.abc.Sequence "
        "collections.abc.Hashable",
        "library/contextlib.html": "contextlib.AbstractContextManager",
        "library/os.html": "os.PathLike",
        "library/pathlib.html": "pathlib.Path",
        "library/signal.html": "signal.Signals",
        "library/datetime.html": "datetime.datetime datetime.timedelta",
        "library/sqlite3.html": "sqlite3.DatabaseError",
    },
    "torch": {
        "tensors.html": "torch.Tensor",
        "tensor_attributes.html": "torch.device torch.dtype",
        "optim.html": "torch.optim.Optimizer",
        "tensorboard.html": "torch.utils.tensorboard.writer.SummaryWriter",
        "generated/{}.html": "torch.nn.Module torch.nn.parameter.Parameter torch.optim.lr_scheduler.LRScheduler "
        "torch.Generator",
        "data.html": "torch.utils.data.DataLoader torch.utils.data.Dataset",
    },
    "numpy": {
        "reference/generated/{}.html": "numpy.ndarray numpy.dtype",
        "reference/arrays.scalars.html": "numpy.int64",
    },
    "pandas": {
        "reference/api/{}.html": "pandas.DataFrame",
    },
    "optuna": {
        "reference/generated/{}.html": "optuna.TrialPruned optuna.trial.Trial",
    },
    "opentelemetry-api": {
        "api/trace.html": "opentelemetry.trace.TracerProvider",
    },
}
"""For each project its pages, and the names on each. `None` is added to Python's, for it is no class."""


def lines(project: str) -> Iterator[str]:
    """Yield an entry for each name: its role, and where it is.

    Raises:
        LookupError: If nothing that is installed has the name.
    """
    for page, names in PAGES[project].items():
        for name in names.split():
            if (thing := locate(name)) is None:
                raise LookupError(f"{name} is in nothing that is installed; correct it in {__file__}")
            kind = "exception" if isinstance(thing, type) and issubclass(thing, BaseException) else "class"
            yield f"{name} py:{kind} 1 {page.format(name)}#$ -\n"
    if project == "python":
        yield "None py:data 1 library/constants.html#$ -\n"


def inventory(project: str) -> bytes:
    """Return the inventory of a project."""
    head = HEAD.format(project, python_version() if project == "python" else version(project))
    return head.encode() + zlib.compress("".join(sorted(lines(project))).encode(), 9)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for project in PAGES:
        (FOLDER / f"{project}.inv").write_bytes(inventory(project))
    sys.stdout.write(f"{', '.join(PAGES)}: written\n")
