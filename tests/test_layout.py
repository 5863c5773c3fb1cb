"""The layout: which module may import which, what the package exports, and what importing it leaves alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import heptad

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"heptad": ROOT / "engine" / "heptad", "heptad_plugins": ROOT / "plugins" / "heptad_plugins"}
EXPORTED = [
    "Arc",
    "CheckpointError",
    "Components",
    "ConfigError",
    "DataError",
    "Detour",
    "Engine",
    "EngineError",
    "LogError",
    "LossOutput",
    "Plugin",
    "PluginError",
    "Run",
    "RunConfig",
    "State",
    "TableError",
    "Transition",
    "TransitionLog",
    "load_weights",
    "on_enter",
    "on_exit",
]


def modules(package: str) -> dict[str, Path]:
    """Returns the files of a package by the names of their modules."""
    base = PACKAGES[package].parent
    found = {}
    for path in sorted(PACKAGES[package].rglob("*.py")):
        parts = path.relative_to(base).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields all nodes of a module, those in functions too, but not what only type checkers see."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from statements(other)
            continue
        yield from statements(child)


def imported(source: str) -> set[str]:
    """Returns all names of modules that a source may import, as they stand: `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}"}
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def imports(package: str) -> dict[str, set[str]]:
    """Returns for each module of a package what it imports."""
    return {name: imported(path.read_text(encoding="utf-8")) for name, path in modules(package).items()}


def importers(package: str, of: str) -> list[str]:
    """Returns the modules of a package that import another package."""
    return [name for name, names in imports(package).items() if any(n == of or n.startswith(f"{of}.") for n in names)]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Returns a cycle of a graph, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_the_scan_sees_imports_wherever_they_stand():
    """The tests below rest on this: functions and branches are looked into, what only type checkers see is not."""
    source = """
import one
from two import three
if TYPE_CHECKING:
    import four
else:
    import five
def function():
    from six.seven import eight
    import nine.ten as eleven
from .twelve import thirteen
"""
    assert imported(source) == {
        "one", "two", "two.three", "five", "six.seven", "six.seven.eight", "nine.ten", ".twelve", ".twelve.thirteen",
    }  # fmt: skip


def test_the_scan_finds_cycles():
    """A cycle is found behind a tail, and a graph without one has none."""
    assert cycle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_engine_never_imports_the_plugins():
    """`heptad` works without `heptad_plugins`."""
    assert importers("heptad", "heptad_plugins") == []


def test_only_the_machine_imports_transitions():
    """The library is behind one module."""
    assert importers("heptad", "transitions") == ["heptad.machine"]
    assert importers("heptad_plugins", "transitions") == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_absolute(package: str):
    """So that what a module imports can be read off, here and by people."""
    relative = {name: sorted(n for n in names if n.startswith(".")) for name, names in imports(package).items()}
    assert {name: names for name, names in relative.items() if names} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_imports_go_in_a_circle(package: str):
    """Not between modules of a package either, imports in functions included."""
    known = modules(package)
    graph: dict[str, set[str]] = {}
    for name, names in imports(package).items():
        needed = {other for other in names if other in known}
        needed |= {parent for parent in known for other in needed if other.startswith(f"{parent}.")}
        # the packages that a module lies in are being imported when it is: what they import is no way back
        graph[name] = {other for other in needed if not f"{name}.".startswith(f"{other}.")}
    assert cycle(graph) == []


def test_no_module_imports_the_package_itself():
    """`from heptad import Engine` is for users; inside it would be a circle."""
    taken = {
        name: sorted(n for n in names if n.startswith("heptad.") and n.removeprefix("heptad.") in heptad.__all__)
        for name, names in imports("heptad").items()
        if name != "heptad"
    }
    assert {name: names for name, names in taken.items() if names} == {}


def test_no_plugin_imports_another():
    """One plugin a file, and none needs another; what they share is in modules whose names begin with `_`."""
    plugins = {name for name in modules("heptad_plugins") if not name.split(".")[-1].startswith("_")}
    plugins -= {"heptad_plugins"}
    taken = {name: sorted(names & plugins) for name, names in imports("heptad_plugins").items() if name in plugins}
    assert {name: names for name, names in taken.items() if names} == {}


def test_the_exported_names_are_these():
    """What users import from `heptad`, sorted, written out."""
    assert heptad.__all__ == EXPORTED
    assert sorted(EXPORTED) == EXPORTED


def test_the_stub_gives_type_checkers_the_same_names():
    """`__init__.pyi` re-exports each public name from the module that defines it."""
    tree = ast.parse((PACKAGES["heptad"] / "__init__.pyi").read_text(encoding="utf-8"))
    found = {alias.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(found) == heptad.__all__
    assert {name: getattr(heptad, name).__module__ for name in found} == found


def after_import(package: str) -> dict[str, object]:
    """Returns what a fresh interpreter says of itself before and after importing a package."""
    code = f"""
import json, random, signal, sys, threading
import numpy, torch

def told():
    return {{
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "random": str(hash(random.getstate())),
        "torch": torch.random.get_rng_state().sum().item(),
        "default dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "excepthook": sys.excepthook is sys.__excepthook__,
    }}

torch.manual_seed(0)
before = told()
import {package}
print(json.dumps({{"before": before, "after": told(), "plugins": "heptad_plugins" in sys.modules,
                   "rich": "rich" in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_changes_nothing_in_the_process(package: str):
    """No thread is started, no signal handler installed, no generator drawn from, no global setting changed."""
    told = after_import(package)
    assert told["before"] == told["after"]
    assert told["rich"] is False
    assert told["plugins"] is (package == "heptad_plugins")
