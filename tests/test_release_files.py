"""The files around a release: they name what exists, and say what `pyproject.toml` says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())


def read(path: Path) -> Any:
    """Return what a file of YAML holds."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_has_what_its_format_requires():
    """The keys that version 1.2.0 of the Citation File Format requires, and the version that is released."""
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert all(set(author) & {"name", "family-names"} for author in citation["authors"])
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["keywords"] == PROJECT["project"]["keywords"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_only_calls_make(path: Path):
    """Whatever it runs is a target, so that a clone can run it as well."""
    workflow = read(path)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands
    for command in commands:
        called = re.fullmatch(r"make ([\w-]+) PYTHON=python", command)
        assert called is not None, command
        assert called[1] in TARGETS


def test_the_workflows_run_the_pythons_of_the_package():
    """The oldest that it may be installed on is the first of the matrix, and no number was read as 3.1."""
    pythons = read(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]}"


def test_the_hooks_are_local_and_run_the_tools_of_the_environment():
    """None is downloaded, and each is a tool of the extra `dev`."""
    hooks = [hook for repository in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert [repository["repo"] for repository in read(ROOT / ".pre-commit-config.yaml")["repos"]] == ["local"]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    needed = PROJECT["project"]["optional-dependencies"]["dev"]
    assert tools == {"ruff", "pyright"}
    assert all(any(requirement.startswith(tool) for requirement in needed) for tool in tools)


def test_the_checklist_calls_targets_that_exist():
    """`make …` in RELEASING.md is one of the Makefile."""
    called = set(re.findall(r"`make ([\w-]+)`", (ROOT / "RELEASING.md").read_text(encoding="utf-8")))
    assert {"test", "oldest", "newest"} <= called
    assert called <= TARGETS


def test_the_source_distribution_has_every_file_of_the_root():
    """What lies beside `pyproject.toml` and is no build output is shipped."""
    shipped = set(PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"])
    files = {path.name for path in ROOT.iterdir() if path.is_file() and path.suffix in (".md", ".txt", ".cff")}
    assert files <= shipped
    assert {".github", ".pre-commit-config.yaml", "Makefile", "LICENSE"} <= shipped


def test_the_page_on_extras_has_each_that_the_package_offers():
    """Once in the list, and each that `all` brings in the table of what they cost, which the benchmark prints."""
    page = (ROOT / "docs" / "extras.md").read_text(encoding="utf-8")
    listed, _, measured = page.partition("## What they cost")
    offered = PROJECT["project"]["optional-dependencies"]
    rows = re.findall(r"^\| `(\w+)` ", listed, re.MULTILINE)
    assert sorted(rows) == sorted(offered)
    brought = {extra for group in offered["all"] for extra in re.findall(r"\w+", group.removeprefix("heptad"))}
    assert set(re.findall(r"^\| `(\w+)` ", measured, re.MULTILINE)) == {*brought, "all"}
