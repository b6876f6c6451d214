"""The lock files: every package of the image is pinned by hash, and they agree with pyproject.toml."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

LOCKS = ("requirements.lock", "requirements-build.lock")
MEND = "run `make lock` and commit what it changes"


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """What a lock pins: each requirement and its hashes."""
    text = re.sub(r"\\\n", "", (ROOT / lock).read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(Requirement(line.partition(" --hash")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines]


def wanted(lock: str) -> list[Requirement]:
    """What pyproject.toml asks for; the image has the map's own land."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = table["project"]
    served = [*project["dependencies"], *project["optional-dependencies"]["map"]]
    asked = table["build-system"]["requires"] if lock == LOCKS[1] else served
    return [Requirement(line) for line in asked]


def missing(asked: Iterable[Requirement], pinned: dict[str, str]) -> list[str]:
    """What is asked for and not pinned, or pinned at another version."""
    return [
        str(one)
        for one in asked
        if (one.marker is None or one.marker.evaluate()) and not pins(one, pinned.get(canonicalize_name(one.name)))
    ]


def pins(asked: Requirement, version: str | None) -> bool:
    return version is not None and asked.specifier.contains(version, prereleases=True)


def here(lock: str) -> dict[str, str]:
    """The versions that a lock gives on this machine, by name."""
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one, _ in entries(lock)
        if one.marker is None or one.marker.evaluate()
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_what_is_asked_for_is_pinned(lock: str) -> None:
    """A dependency added or raised without `make lock` would make an image that can't be built, or does not start."""
    assert missing(wanted(lock), here(lock)) == [], MEND


@pytest.mark.parametrize("lock", LOCKS)
def test_everything_is_pinned_by_hash(lock: str) -> None:
    """One line without a hash, and pip takes whatever a registry gives under that name."""
    for one, hashes in entries(lock):
        assert re.fullmatch(r"==[^*,]+", str(one.specifier)), one
        assert hashes, one
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), one


@pytest.mark.parametrize("lock", LOCKS)
def test_no_registry_is_named(lock: str) -> None:
    """A lock made beside a mirror must not send others there."""
    assert not re.search(r"https?:|file:|--index|--find-links|--extra", (ROOT / lock).read_text(encoding="utf-8"))


def test_what_the_pinned_ones_need_is_pinned() -> None:
    """Under --require-hashes pip refuses the whole lock if one package's dependency is not in it."""
    pinned = here("requirements.lock")
    environment = {name: str(value) for name, value in default_environment().items()}
    waiting = [(canonicalize_name(one.name), frozenset(one.extras)) for one in wanted("requirements.lock")]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = one = waiting.pop()
        if one in seen or name not in pinned:
            continue
        seen.add(one)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            pytest.fail(f"{name} is pinned and not installed: make test installs what the lock has")
        if installed.version != pinned[name]:
            pytest.fail(f"{name} is pinned at {pinned[name]}, and tested at {installed.version}: run `make test` anew")
        for needed in map(Requirement, installed.requires or ()):
            if any(
                needed.marker is None or needed.marker.evaluate({**environment, "extra": extra})
                for extra in (extras or {""}) | {""}
            ):
                assert missing([Requirement(str(needed).partition(";")[0])], pinned) == [], f"{name} needs it: {MEND}"
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    assert len(seen) > 20


def test_the_lock_holds_for_every_python_that_is_supported() -> None:
    """3.11.0 needs a package that 3.13 does not: a lock made on one must hold on the other."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert re.search(r"^async-timeout==.*python_full_version < '3.11.3'", text, re.MULTILINE)
    tags = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert tags == ">=3.11", "then the lock is made for another: --python-version in the Makefile"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    specification = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


FOUND: list[dict[str, Any]] = [
    {"name": "aiohttp", "version": "3.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"], "aliases": []}]},
    {"name": "yarl", "version": "1.25.1", "vulns": []},
]


def test_a_known_vulnerability_fails_ci(audit: ModuleType) -> None:
    """A check that can't fail would be none."""
    assert audit.judged("a.lock", FOUND) == (False, ["a.lock: aiohttp 3.0: PYSEC-1, mended in 3.1"])
    assert audit.judged("a.lock", FOUND[1:]) == (True, ["a.lock: no known vulnerability in 1 packages"])


def test_what_could_not_be_checked_is_said(audit: ModuleType) -> None:
    """Silence would look like a clean result."""
    skipped = {"name": "rich", "skip_reason": "Dependency not found on PyPI and could not be audited"}
    passes, lines = audit.judged("a.lock", [*FOUND, skipped])
    assert not passes
    assert "NOT CHECKED" in lines[-1]
    assert audit.judged("a.lock", [skipped])[0]


def test_an_auditor_that_breaks_fails_ci(audit: ModuleType, tmp_path: Path) -> None:
    """Wrong options, or a lock that the auditor can't read, must fail; a missing network must not."""
    program = tmp_path / "pip-audit"
    for said, status in (("error: unrecognized arguments: --format", 1), ("requests.ConnectionError: no way", 0)):
        program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n", encoding="utf-8")
        program.chmod(0o755)
        assert audit.main(str(program), "a.lock") == status
