"""The package's metadata and the repository's habits: what an engineer's tools read without asking."""

from __future__ import annotations

import re
import tomllib

import yaml

import streamer
from tests.support.paths import ROOT


def test_pre_commit_runs_the_same_as_make_lint() -> None:
    """A commit that passes the hooks must pass CI's lint: both run the same commands."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"].removeprefix("env ") for repo in config["repos"] for hook in repo["hooks"]]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    assert hooks == [line.strip().replace("$(BIN)/", ".venv/bin/") for line in lint[1].splitlines()]


def test_the_metadata_is_complete() -> None:
    """An index, an editor and a type checker find what they look for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (ROOT / project["readme"]).is_file()
    assert (ROOT / "streamer" / "py.typed").is_file()
    for member in ("description", "keywords", "classifiers", "urls", "requires-python"):
        assert project[member], f"pyproject.toml has no {member}"


def test_the_changelog_names_the_version() -> None:
    """Whoever upgrades reads what changed in this version: under its number, or as not released yet."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", text, re.MULTILINE)
    assert headings, "CHANGELOG.md has no version"
    assert headings[0][0] in ("Unreleased", streamer.__version__)
    assert all(date for name, date in headings if name != "Unreleased"), "a released version needs a date"
