"""The public names, and links to them: by public name, by bare name, and by the module that defines them."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

MODULES = ("heptad", "heptad.plugin", "heptad.testing", "heptad_plugins")
"""Where public names are imported from. A name of several is documented in the first."""

OF_OTHERS = {
    "nn.Module": "torch.nn.Module",
    "nn.Parameter": "torch.nn.parameter.Parameter",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "Module": "torch.nn.Module",
    "Tensor": "torch.Tensor",
    "Optimizer": "torch.optim.Optimizer",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "LRScheduler": "torch.optim.lr_scheduler.LRScheduler",
    "optuna.trial._trial.Trial": "optuna.trial.Trial",
    "np.ndarray": "numpy.ndarray",
    "collections.abc.Path": "pathlib.Path",
    "Path": "pathlib.Path",
    "PathLike": "os.PathLike",
}
"""Names in annotations that are links under another name."""


def load_with_types() -> None:
    """Import every module of both packages, and then into each what only type checkers import otherwise.

    Without these names, annotations that use them could not be evaluated, and would be no links.
    """
    loaded: list[ModuleType] = []
    for package in ("heptad", "heptad_plugins"):
        for found in walk_packages(import_module(package).__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                loaded.append(import_module(found.name))
    for module in loaded:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec("\n".join(map(ast.unparse, node.body)), vars(module))


@cache
def public() -> dict[str, str]:
    """Return each public name with the module that it is documented in."""
    found: dict[str, str] = {}
    for module in MODULES:
        for name in exported(module):
            found.setdefault(name, module)
    return found


def exported(module: str) -> list[str]:
    """Return the names in `__all__` of a module."""
    room: ModuleType = import_module(module)
    return list(room.__all__)


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, inside: nodes.TextElement) -> nodes.Node | None:
    """Link a name that Python's domain does not know as it is written."""
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"]).lstrip("~.")
    objects = env.domains["py"].objects  # pyright: ignore[reportAttributeAccessIssue] - of the Python domain, which is typed as any
    last = target.rpartition(".")[2]
    ours = "." not in target or target.startswith("heptad")
    for name in (f"{public().get(last)}.{last}", target, *_known(objects, last)):
        if ours and name in objects:
            there = objects[name]
            return make_refnode(app.builder, str(node["refdoc"]), there.docname, there.node_id, [inside], name)
    if (other := OF_OTHERS.get(target)) is not None:
        node["reftarget"] = other
    return None


def _known(objects: Any, last: str) -> list[str]:
    """Return the documented class or function with this bare name, if there is just one."""
    found = [name for name, entry in objects.items() if name.endswith(f".{last}") and entry.objtype != "attribute"]
    return found if len(found) == 1 else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Load the packages and connect the links."""
    load_with_types()
    app.connect("missing-reference", resolve, priority=100)
    return {"parallel_read_safe": True}
