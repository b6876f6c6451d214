"""Which vendors the apps may speak for: pairs of vendor and owner that stand in the server's database."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import orjson

from loadtest.errors import RunFailed, WrongUse

SEED_TIMEOUT = 120.0


class Identity(NamedTuple):
    """One vendor and the `users.clerkId` that owns it."""

    vendor_id: str
    clerk_id: str
    name: str


def parse(lines: Iterable[str], source: str) -> list[Identity]:
    """Identities from JSON lines {"vendorId","clerkId","name"}; lines that are no objects don't count."""
    found = []
    for count, line in enumerate(lines, 1):
        if not line.lstrip().startswith("{"):
            continue
        try:
            row = orjson.loads(line)
            found.append(Identity(str(row["vendorId"]), str(row["clerkId"]), str(row.get("name", ""))))
        except (orjson.JSONDecodeError, KeyError) as bad:
            raise WrongUse(
                f'{source} line {count} is {line.strip()[:120]!r} ({bad!r}); each is {{"vendorId","clerkId","name"}}'
            ) from None
    return found


def read(source: str) -> list[Identity]:
    """Identities from a file, or from standard input when it is `-`."""
    if source == "-":
        return parse(sys.stdin, "standard input")
    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as failed:
        raise WrongUse(f"the vendors can't be read: {failed}") from None
    return parse(text.splitlines(), source)


def enough(found: list[Identity], needed: int, source: str) -> list[Identity]:
    """The first `needed` distinct vendors; WrongUse when there are fewer."""
    distinct = list({identity.vendor_id: identity for identity in found}.values())
    if len(distinct) < needed:
        raise WrongUse(f"{needed} vendors are needed, {source} has {len(distinct)}; seed more or ask for fewer")
    return distinct[:needed]


async def seed(count: int, database_url: str) -> list[Identity]:
    """Have `streamer db seed` put `count` vendors into a database, and take what it prints."""
    beside = Path(sys.executable).with_name("streamer")
    command = str(beside) if beside.exists() else shutil.which("streamer")
    if command is None:
        raise WrongUse("there is no `streamer` command to seed vendors with; give them by --vendors-file")
    process = await asyncio.create_subprocess_exec(
        *(command, "db", "seed", "--vendors", str(count), "--json"),
        env={**os.environ, "DATABASE_URL": database_url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), SEED_TIMEOUT)
    except TimeoutError:
        raise RunFailed(f"`{command} db seed` did not end within {SEED_TIMEOUT:g} s; is the database up?") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = err.decode("utf-8", "replace").strip()[-1000:]
        raise RunFailed(f"`{command} db seed` ended with {process.returncode}: {said or 'it said nothing'}")
    return parse(out.decode().splitlines(), "`streamer db seed`")
