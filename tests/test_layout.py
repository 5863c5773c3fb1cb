"""The layout: which module may import which, what the packages export, and what importing them leaves alone."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import pytest

import heptad

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"heptad": ROOT / "engine" / "heptad", "heptad_plugins": ROOT / "plugins" / "heptad_plugins"}

ROOMS = (
    ("errors",), ("table",), ("config_text",), ("config",), ("record",), ("history",), ("report",), ("data",), ("run",),
    ("blocks",), ("plugin",), ("ranks",), ("checkpoints",), ("step",), ("machine",), ("smoke",), ("engine_view",),
    ("engine",), ("diagnose",), ("testing", "cli"), ("__main__",),
)  # fmt: skip
"""The rooms of `heptad` in order: each imports only those before it."""

WITHOUT_TORCH = ("errors", "table", "record", "history", "report", "cli")

BY_NAME = {
    "heptad": "public names, when they are first asked for",
    "heptad.checkpoints": "as above",
    "heptad.plugin": "as above",
    "heptad.testing": "as above",
    "heptad_plugins": "as above",
    "heptad.errors": "advice from `diagnose`, when something has failed",
    "heptad.cli.main": "the command that is called",
    "heptad.cli.demo": "the example of the plugins",
    "heptad_plugins.trackio_logger": "its extra, when it is built",
    "heptad_plugins.wandb_logger": "as above",
}
"""The modules that import by a name that is worked out, which no test here can follow, and what they import."""

PUBLIC = {"heptad", "heptad.plugin"}
"""What plugins import from the engine."""

INSIDE = {"emit", "fail", "plan_windows"}
"""Attributes of the engine's objects that have no underscore and are no part of the contract."""

SHARED = {"_position", "_runtime", "_buffer", "_capture", "_id", "_paused", "_resumed_from", "_afresh"}
SHARED |= {"_agreed", "_driving"}
"""Private parts of a run, and how an engine admits one caller, which the rooms of the engine share.

Nothing else private is read of another object.
"""

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
    "RankFailed",
    "RateSearch",
    "Run",
    "RunConfig",
    "State",
    "TableError",
    "Transition",
    "TransitionLog",
    "find_learning_rate",
    "load_weights",
    "on_enter",
    "on_exit",
]


INTERFACES = {"__getattr__", "__dir__", "main", "add_to", "run", "write"}
"""Functions that several modules have: lazy packages, programs, commands, exports."""

OF_TORCH = {
    *(
        "torch._foreach_norm",
        "gradient._values",
        "flop_counter._FlopCounterMode",
        "_python_dispatch._get_current_dispatch_mode",
    ),
    *("memory._record_memory_history", "memory._dump_snapshot", "torch.autograd.profiler._is_profiler_enabled"),
}
"""Private names of torch, not of the engine."""

Imports = dict[str, set[str]]


def modules(package: str) -> dict[str, Path]:
    """Return the files of a package by the names of their modules."""
    base = PACKAGES[package].parent
    found = {}
    for path in sorted(PACKAGES[package].rglob("*.py")):
        parts = path.relative_to(base).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str) -> set[str]:
    """Return the modules that a source may import, as written: `from a import b` gives a and a.b.

    Imports in functions, in branches and for type checkers count.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = f"{'.' * node.level}{node.module or ''}"
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def parents(name: str) -> set[str]:
    """Return the packages that a module lies in."""
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def imports(package: str) -> Imports:
    """Return for each module of a package what its source imports."""
    return {name: imported(path.read_text(encoding="utf-8")) for name, path in modules(package).items()}


def loads(found: Imports) -> Imports:
    """Return for each module which others of its package are loaded with it.

    Python imports `a` and `a.b` before `a.b.c`: for a module that imports `a.b.c`, and for `a.b.c` itself.
    """
    graph: Imports = {}
    for name, names in found.items():
        needed = {other for other in names if other in found}
        needed |= {parent for other in (*needed, name) for parent in parents(other) if parent in found}
        graph[name] = needed - {name}
    return graph


def circle(graph: Imports) -> list[str]:
    """Return a circle of a graph, or nothing."""
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


def within(name: str, packages: Iterable[str]) -> bool:
    """Return whether a module is one of these packages, or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offences(found: Imports) -> dict[str, list[str]]:
    """Return the modules that import, or read, what they must not."""
    return {name: sorted(names) for name, names in found.items() if names}


def room(name: str) -> str:
    """Return the room of a module of the engine; the package itself has none."""
    return [*name.split("."), ""][1]


RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}


# -- the tests below rest on these


def test_the_scan_sees_imports_wherever_they_stand():
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
        "one", "two", "two.three", "four", "five", "six.seven", "six.seven.eight", "nine.ten", ".twelve",
        ".twelve.thirteen",
    }  # fmt: skip


def test_a_circle_is_found_behind_a_tail():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_a_package_that_imports_its_own_module_is_a_circle():
    assert circle(loads({"a": {"a.b"}, "a.b": set()})) == ["a", "a.b", "a"]
    assert circle(loads({"a": {"a.b.c"}, "a.b": set(), "a.b.c": set()})) == ["a", "a.b", "a"]
    assert circle(loads({"a": set(), "a.b": {"a.c.d"}, "a.c": {"a.b"}, "a.c.d": set()})) == ["a.b", "a.c", "a.b"]
    assert circle(loads({"a": set(), "a.b": {"a.c"}, "a.c": set()})) == []


# -- what imports what


@pytest.mark.parametrize("package", PACKAGES)
def test_no_imports_go_in_a_circle(package: str):
    """Type-only imports, imports in functions and parent packages included."""
    assert circle(loads(imports(package))) == []


def test_each_room_has_its_place_in_the_order():
    """Every module of the engine lies in a room that the order names, and every room is there."""
    assert {room(name) for name in modules("heptad")} - {""} == set(RANK)


def test_rooms_import_only_rooms_before_them():
    upwards = {
        name: {
            other
            for other in names
            if other in modules("heptad") and room(other) and room(other) != room(name)
            if RANK[room(other)] >= RANK[room(name)]
        }
        for name, names in imports("heptad").items()
        if room(name)
    }
    assert offences(upwards) == {}


def test_history_imports_errors_table_and_record_only():
    allowed, known = {"errors", "table", "record", "history", ""}, modules("heptad")
    taken = {
        name: {other for other in names if other in known and room(other) not in allowed}
        for name, names in imports("heptad").items()
        if room(name) == "history"
    }
    assert offences(taken) == {}


def test_rooms_that_ask_a_log_import_no_torch():
    """Not in a function either: a question at a terminal is answered before torch would be imported."""
    taken = {
        name: {other for other in names if within(other, ["torch"])}
        for name, names in imports("heptad").items()
        if room(name) in WITHOUT_TORCH
    }
    assert offences(taken) == {}


def test_modules_are_imported_by_name_only_where_it_is_said():
    """`import_module` hides what is imported from this file's other tests."""
    users = {
        name
        for package in PACKAGES
        for name, path in modules(package).items()
        if re.search(r"\b(import_module|__import__|run_module)\b", path.read_text(encoding="utf-8"))
    }
    assert users - set(BY_NAME) == set()


def test_advice_is_reached_only_through_errors():
    """`errors.diagnose` is the one door to the room above."""
    taken = {
        name: {other for other in names if room(other) == "diagnose" and other in modules("heptad")}
        for name, names in imports("heptad").items()
        if room(name) != "diagnose"
    }
    assert offences(taken) == {}


def test_the_engine_never_imports_the_plugins():
    taken = {name: {n for n in names if within(n, ["heptad_plugins"])} for name, names in imports("heptad").items()}
    assert offences(taken) == {}


def test_only_the_machine_imports_transitions():
    taken = {name: names for package in PACKAGES for name, names in imports(package).items()}
    assert [name for name, names in taken.items() if any(within(n, ["transitions"]) for n in names)] == [
        "heptad.machine"
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_absolute(package: str):
    relative = {name: {n for n in names if n.startswith(".")} for name, names in imports(package).items()}
    assert offences(relative) == {}


# -- packages and their public names


def lazy() -> dict[str, Path]:
    """Return the packages that load their names when they are asked for: each has a stub."""
    return {
        name: path.with_suffix(".pyi")
        for package in PACKAGES
        for name, path in modules(package).items()
        if path.with_suffix(".pyi").exists()
    }


def stubbed(stub: Path) -> dict[str, str]:
    """Return the names that a stub re-exports, each with the module that defines it."""
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: node.module or ""
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize(
    ("package", "path"),
    [(name, path) for package in PACKAGES for name, path in modules(package).items() if path.stem == "__init__"],
)
def test_a_package_is_a_docstring_or_loads_its_names_lazily(package: str, path: Path):
    """What a package imports is imported before each of its modules."""
    if package not in lazy():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert [type(node) for node in body] == [ast.Expr]
        assert body[0].value.value.strip(" .") != "TODO"  # type: ignore[attr-defined] - the docstring
    else:
        assert {name for name in imported(path.read_text(encoding="utf-8")) if within(name, PACKAGES)} == set()


def test_public_packages_are_lazy():
    assert set(lazy()) == {*PUBLIC, "heptad.checkpoints", "heptad.testing", "heptad_plugins"}


@pytest.mark.parametrize("package", lazy())
def test_the_stub_gives_type_checkers_the_same_names(package: str):
    """`__init__.pyi` re-exports each public name from the module that defines it."""
    names, module = stubbed(lazy()[package]), import_module(package)
    assert sorted(names) == sorted(module.__all__)
    assert set(names) <= set(dir(module))
    assert [
        name for name, home in names.items() if getattr(module, name) is not getattr(import_module(home), name)
    ] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_inside_a_package_names_come_from_the_module_that_defines_them(package: str):
    """`from heptad import Engine` is for users; inside it would be a circle that no scan sees."""
    public = {f"{name}.{public}" for name, stub in lazy().items() for public in stubbed(stub)}
    taken = {
        name: {other for other in names if other in public and other.split(".")[0] == package}
        for name, names in imports(package).items()
        if not within(name, ["heptad_plugins.examples"])  # written as a user would
    }
    assert offences(taken) == {}


def test_the_exported_names_are_these():
    """What users import from `heptad`, sorted, written out."""
    assert heptad.__all__ == EXPORTED
    assert sorted(EXPORTED) == EXPORTED


def test_no_two_classes_and_no_two_functions_have_one_name():
    """A name is searched for in the whole of the house; modules of one kind have the same interface."""
    homes: dict[str, list[str]] = {}
    for package in PACKAGES:
        for module, path in modules(package).items():
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in INTERFACES:
                    homes.setdefault(node.name, []).append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


# -- the plugins and the contract


def test_no_plugin_imports_another():
    """One plugin a file; what they share is in modules whose names begin with `_`."""
    plugins = {name for name in modules("heptad_plugins") if re.fullmatch(r"heptad_plugins\.[a-z]\w*", name)}
    plugins -= {"heptad_plugins.examples"}
    taken = {name: names & plugins - {name} for name, names in imports("heptad_plugins").items() if name in plugins}
    assert offences(taken) == {}


def test_plugins_import_only_what_is_public():
    """From the engine `heptad` and `heptad.plugin`; what they lack is added to the contract."""
    known = modules("heptad")
    taken = {
        name: {other for other in names if other in known and other not in PUBLIC}
        for name, names in imports("heptad_plugins").items()
    }
    assert offences(taken) == {}


def private_reads(source: str) -> set[str]:
    """Return what a source reads with an underscore of other objects than `self` and `cls`, and what is `INSIDE`."""
    return {
        f"{ast.unparse(node.value)}.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        if node.attr in INSIDE
        or (re.match(r"_(?!_)", node.attr) and ast.unparse(node.value) not in ("self", "cls", "super()"))
    }


def test_private_reads_are_seen():
    source = "self._a; cls._b; run._c; self.run._d; run.emit; x.__class__; run.e; getattr(run, 'f')"
    assert private_reads(source) == {"run._c", "self.run._d", "run.emit"}


def test_plugins_read_nothing_private():
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules("heptad_plugins").items()}
    found = {name: private_reads(source) - OF_TORCH for name, source in sources.items()}
    assert offences(found) == {}


def test_the_rooms_of_the_engine_share_of_each_other_what_is_said_here():
    """And what torch, torchmetrics and named tuples show with an underscore."""
    known = SHARED | INSIDE | {"_asdict", "_fields", "_version", "_indices", "_values"}
    known |= {"_get_default_store", "_set_pg_timeout", "_computed", "_reductions", "_update_count"}
    known |= {"_buffers", "_non_persistent_buffers_set"}
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules("heptad").items()}
    found = {
        name: {read for read in private_reads(source) if read.split(".")[-1] not in known}
        for name, source in sources.items()
    }
    assert offences(found) == {}


# -- what importing leaves alone


def after_import(package: str) -> dict[str, object]:
    """Return what a fresh interpreter says of itself before and after importing a package."""
    code = f"""
import json, random, signal, sys, threading
import numpy, torch

def found():
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
before = found()
import {package}
print(json.dumps({{"before": before, "after": found(), "plugins": "heptad_plugins" in sys.modules,
                   "rich": "rich" in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_changes_nothing_in_the_process(package: str):
    """No thread is started, no signal handler installed, no generator drawn from, no global setting changed."""
    found = after_import(package)
    assert found["before"] == found["after"]
    assert found["rich"] is False
    assert found["plugins"] is (package == "heptad_plugins")


# -- what has one place


def lines_with(pattern: str) -> set[str]:
    """Return the modules of both packages in which a line matches, comments and docstrings left out."""
    found: set[str] = set()
    for package in PACKAGES:
        for name, path in modules(package).items():
            code = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
            if re.search(pattern, code):
                found.add(name)
    return found


@pytest.mark.parametrize(
    ("pattern", "homes"),
    [
        (r"\.param_groups\b", {"heptad.step.optimizers", "heptad_plugins.freeze"}),  # Freeze removes its trial group
        (r"\bif .*world > 1", set()),
        (r"\b(self|at|_position)\.ending = True", {"heptad.run.state"}),
        (r"\b(self|at|_position)\.reason = (?!None|\(False)", {"heptad.run.state"}),
        (r"_forward\(", {"heptad.step.function"}),
    ],
)
def test_it_has_one_place(pattern: str, homes: set[str]):
    """Parameter groups are walked, the network is called, and a run is ended in one module each."""
    assert lines_with(pattern) == homes
