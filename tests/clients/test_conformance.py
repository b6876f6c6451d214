"""`streamer conformance`: both clients pass, and a client with a fault does not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from streamer.dev.conformance import script
from tests.support.clients import KIT, PROGRAMS
from tests.support.commands import run
from tests.support.paths import ROOT

PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "clients" / "python")))


@pytest.mark.parametrize("client", PROGRAMS)
async def test_both_clients_pass(client: str, tmp_path: Path) -> None:
    """Our clients pass the conformance tests for other clients."""
    command = PROGRAMS[client]
    if command is None:
        pytest.skip("needs Node 20 or newer")
    # most of a case's time is waiting
    words = ("--jobs", "6", "--within", "60", "--", *command)
    done = await run("conformance", *words, folder=tmp_path, PYTHONPATH=PYTHONPATH)
    assert done.status == 0, done.out
    count = len(script.load())
    assert done.out.splitlines()[-1] == f"{count} of {count} passed"


FAULTS = {
    "a ping that is sent again is another": (
        "venta_client.outbox.Outbox.take",
        "lambda take: lambda self, most: [(n, one._replace(timestamp=one[0] + n)) for n, one in take(self, most)]",
        "vendor",
        "what was not acked is sent again",
    ),
    "an ack stores what comes after it too": (
        "venta_client.outbox.Outbox.ack",
        "lambda ack: lambda self, seq: ack(self, self.seq)",
        "vendor",
        "an ack covers all pings",
    ),
    "it returns whatever the close code": (
        "venta_client.reconnect.rule",
        "lambda rule: lambda code: 'yes'",
        "customer",
        "4403: the end",
    ),
    "it returns at once": (
        "venta_client.reconnect.wait",
        "lambda wait: lambda *args, **options: 0.0",
        "customer",
        "a server that is away",
    ),
    "what left stays": (
        "venta_client.view.View.update",
        "lambda update: lambda self, entered, moved, left: update(self, entered, moved, [])",
        "customer",
        "a view is snapshot and updates",
    ),
    "an outdated view looks exact": (
        "venta_client.customer.CustomerClient.became",
        "lambda became: lambda self, state: super(type(self), self).became(state)",
        "customer",
        "a view is kept over a cut",
    ),
}
"""A patch of the Python client, the kind of client, and the case that must find it."""


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_client_with_a_fault_fails(fault: str, tmp_path: Path) -> None:
    """The conformance tests must find faults of clients."""
    target, patch, kind, case = FAULTS[fault]
    owner, name = target.rsplit(".", 1)
    faulty = tmp_path / "faulty.py"
    faulty.write_text(
        "import pkgutil, runpy, sys\n"
        f"owner = pkgutil.resolve_name({owner!r})\n"
        f"setattr(owner, {name!r}, ({patch})(getattr(owner, {name!r})))\n"
        f"runpy.run_path({str(KIT / 'testee.py')!r}, run_name='__main__')\n"
    )
    words = ("--client", kind, "--case", case, "--within", "4", "--", sys.executable, str(faulty))
    done = await run("conformance", *words, folder=tmp_path, PYTHONPATH=PYTHONPATH)
    assert done.status == 1, done
    assert done.out.startswith(f"FAIL  {kind}  {case}"), done
    assert "0 of 1 passed" in done.out


async def test_mistakes_of_the_caller(tmp_path: Path) -> None:
    """A mistyped case or program is reported, and is not a failure of the client."""
    unreadable = tmp_path / "client"
    unreadable.write_text("#!/no/such/interpreter\n")
    unreadable.chmod(0o755)
    for words, reason in (
        (("--case", "no such case", "--", "true"), "no case"),
        (("--", "./nothing"), "there is no program"),
        (("--case", "4403", "--", str(unreadable)), "the client can't be started: [Errno 2] No such file or directory"),
    ):
        done = await run("conformance", *words, folder=tmp_path)
        assert done.status == 2, done
        assert reason in done.err


async def test_a_program_that_is_no_client(tmp_path: Path) -> None:
    """A program that ends immediately fails all cases with its last output."""
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit('no such class')")
    done = await run("conformance", "--case", "4403", "--", sys.executable, str(program), folder=tmp_path)
    assert done.status == 1, done
    assert "the program ended: no such class" in done.out


def test_every_step_is_explained() -> None:
    """Each step of the cases is in the guide, for authors of clients."""
    guide = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    steps = {next(iter(step)) for case in script.load() for step in case.steps}
    for step in steps:
        assert f"`{step}`" in guide, f"docs/conformance.md does not explain {step}"
