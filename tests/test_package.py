"""The package: what the built wheel holds, and that it works where nothing of the repository can be seen."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from email import message_from_string
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from heptad import TransitionLog
from heptad.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"heptad": ROOT / "engine", "heptad_plugins": ROOT / "plugins"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

REQUIRED = {"numpy", "pydantic", "safetensors", "torch", "transitions"}
EXTRAS = {
    "complete": {"argcomplete"},
    "docs": {"furo", "ipykernel", "myst-parser", "nbmake", "sphinx"},
    "frames": {"pandas"},
    "mirror": {"fsspec"},
    "mlflow": {"mlflow-skinny"},
    "monitor": {"nvidia-ml-py", "psutil"},
    "optuna": {"optuna"},
    "otel": {"opentelemetry-sdk"},
    "parquet": {"pyarrow"},
    "report": {"bokeh", "jinja2"},
    "rich": {"rich"},
    "tensorboard": {"tensorboard"},
    "torchmetrics": {"torchmetrics"},
    "trackio": {"trackio"},
    "wandb": {"wandb"},
}
EXTRAS["all"] = set().union(*(packages for extra, packages in EXTRAS.items() if extra != "docs"))
EXTRAS["demo"] = EXTRAS["report"] | {"rich", "scikit-learn"}
EXTRAS["examples"] = EXTRAS["demo"] | EXTRAS["frames"] | {"accelerate", "datasets", "transformers"}
EXTRAS["dev"] = (
    EXTRAS["all"]
    | EXTRAS["docs"]
    | EXTRAS["examples"]
    | {"build", "hypothesis", "playwright", "pre-commit", "pyright", "pytest", "pyyaml", "ruff"}
    | {"torchdata", "twine"}
    | {"hydra-core", "jsonargparse", "mlflow", "tyro"}
)
CLASSIFIERS = {
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3 :: Only",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what `build` makes, in this environment and so without a network: a wheel, and its source."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", f"--outdir={folder}", str(ROOT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """A wheel."""
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(built: Path) -> Path:
    """A source distribution."""
    (source,) = built.glob("*.tar.gz")
    return source


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """What the wheel says of itself."""
    with ZipFile(wheel) as archive:
        return message_from_string(archive.read(f"{info(wheel)}/METADATA").decode())


class Installed:
    """The wheel in an environment that sees the heavy packages and nothing of the repository."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.home = folder / "environment"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        # PYTHONPATH and the editable install are what the repository is found by
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.variables["PYTHONUTF8"] = "1"  # what it prints is read as UTF-8, whatever the locale
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.home], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.home / "bin" / "python"), "--quiet"]
        # before the other packages can be seen: among them pip would find the editable install, and take it away
        command = [*pip, "install", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
        subprocess.run(command, check=True, env=self.variables)
        site = next(self.home.glob("lib/python*/site-packages"))
        # a path that stands in such a file is searched, but what lies there of that kind (the editable install) is not
        (site / "heavy.pth").write_text(str(Path(torch.__file__).parents[1]), encoding="utf-8")

    def run(self, program: str, *arguments: str) -> str:
        """Return what a program of the environment prints; it is run in another folder."""
        command = [str(self.home / "bin" / program), *arguments]
        done = subprocess.run(
            command, cwd=self.elsewhere, env=self.variables, check=False, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed."""
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


def info(wheel: Path) -> str:
    """Return the name of the folder with the metadata."""
    name, version = wheel.name.split("-")[:2]
    return f"{name}-{version}.dist-info"


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: Path):
    """All modules of both, `py.typed` of both, the metadata; no test, no cache, no file of the repository."""
    expected = {
        str(path.relative_to(root))
        for package, root in PACKAGES.items()
        for path in (root / package).rglob("*")
        if path.suffix in (".py", ".pyi", ".css", ".js", ".jinja") or path.name == "py.typed"
    }
    assert {"heptad/py.typed", "heptad_plugins/py.typed", "heptad/engine.py"} <= expected
    expected |= {f"{info(wheel)}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    expected |= {f"{info(wheel)}/licenses/LICENSE"}
    with ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected
    assert wheel.name == f"heptad-{PROJECT['version']}-py3-none-any.whl"


def test_the_metadata_say_what_it_is(metadata: Message):
    """The README is the long description, the classifiers are these, and no address is named that does not exist."""
    assert metadata["Name"] == "heptad"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Project-URL", []) == []
    assert set(metadata.get_all("Classifier", [])) == CLASSIFIERS


def test_the_package_brings_what_it_needs_and_an_extra_what_its_name_says(metadata: Message):
    """The names that each requires, in the metadata that pip reads; `all` is those for plugins and the log."""
    found: dict[str | None, set[str]] = {extra: set() for extra in (None, *metadata.get_all("Provides-Extra", []))}
    for requirement in metadata.get_all("Requires-Dist", []):
        asked = re.fullmatch(r"([\w-]+)[^;]*(?:; extra == '([\w-]+)')?", requirement)
        assert asked is not None, requirement
        found[asked[2]].add(asked[1])
    assert found == {None: REQUIRED, **EXTRAS}


def test_an_index_would_take_both(built: Path):
    """`twine check --strict`: the metadata are whole, and the README can be shown as the long description."""
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_source_distribution_is_enough_to_run_its_tests(source: Path, tmp_path: Path):
    """All its tests are collected there, and those of its pages pass: links and named files lead somewhere."""
    with tarfile.open(source) as packed:
        packed.extractall(tmp_path, filter="data")
    root = tmp_path / source.name.removesuffix(".tar.gz")
    pages = "test_contributing or test_release_files or (test_docs and not from_top_to_bottom) or makefile"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-k", pages],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(root / source) for source in ("engine", "plugins"))},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_oldest_versions_of_the_ranges_are_those_that_are_tested():
    """`oldest.txt` holds the lower end of every range of the package and of its extras, and no other version."""
    pinned = dict(
        line.split("==") for line in (ROOT / "oldest.txt").read_text().splitlines() if not line.startswith("#")
    )
    beside = {"all", "examples", "dev", "docs"}  # made of the others, or about tools
    ranges = [*PROJECT["dependencies"]]
    for extra, needed in PROJECT["optional-dependencies"].items():
        ranges += [] if extra in beside else needed
    lowest = dict(requirement.split(",")[0].split(">=") for requirement in ranges if "[" not in requirement)
    assert {name: trimmed(version) for name, version in pinned.items()} == {
        name: trimmed(version) for name, version in lowest.items()
    }


def trimmed(version: str) -> list[str]:
    """Return the parts of a version without the zeros at its end."""
    parts = version.split(".")
    while parts[-1] == "0":
        parts.pop()
    return parts


def test_an_example_runs_from_another_folder_with_the_installed_package(installed: Installed):
    """It is the packages of the environment that are imported, by their types too, and none of the repository."""
    shutil.copy(ROOT / "examples" / "digits.py", installed.elsewhere)
    code = """
import json, runpy, sys
runpy.run_path("digits.py", run_name="__main__")
import heptad, heptad_plugins
print()
print(json.dumps({"packages": [heptad.__file__, heptad_plugins.__file__], "path": sys.path}))
"""
    *shown, last = installed.run("python", "-c", code).strip().splitlines()
    assert any("accuracy on the held-out images" in line for line in shown)
    found = json.loads(last)
    assert all(Path(path).is_relative_to(installed.home) for path in found["packages"])
    assert not any(Path(path).is_relative_to(root) for path in found["path"] if path for root in PACKAGES.values())


def test_the_demo_trains_dies_resumes_and_explains_itself(installed: Installed):
    """The installed command prints lines of at most 80 columns, and its last ones are commands that answer."""
    lines = installed.run("heptad", "demo", "--epochs=2").splitlines()
    assert max(map(len, lines)) <= 80
    assert "the process was ended by SIGKILL" in lines
    assert sum(line.endswith("the same") for line in lines) == 6
    assert "stateDiagram-v2" in lines
    commands = [line.split() for line in lines if line.startswith("    heptad ")]
    assert [command[1] for command in commands] == ["runs/digits/first/log.journal", "stats", "explain", "diff"]
    summary, stats, explanation, same = (installed.run(*command) for command in commands)
    assert summary.startswith("ended    finished: epochs=2 complete; epoch 2, step 184, update 46\n")
    assert re.search(r"^optimizer_update +46 ", stats, re.MULTILINE)
    assert "to optimizer_update if update_due: no (steps in the window 1, accumulation 4" in explanation
    assert same.startswith("the same but for times: ")
    first, killed = (TransitionLog.load(installed.elsewhere / path) for path in commands[3][2:])
    assert first.counts()["optimizer_update"] == killed.counts()["optimizer_update"] == 46


@pytest.mark.parametrize("missing", ["sklearn.datasets", "rich.console", "heptad_plugins.examples.digits"])
def test_the_demo_without_its_extra_names_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What is missing, and what to install."""
    monkeypatch.delitem(sys.modules, "heptad_plugins.examples.digits", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo", f"--folder={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("heptad: the demo needs an extra; install it with: pip install 'heptad[demo]' (")
    assert message.count("\n") == 1
