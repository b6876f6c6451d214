"""The data folder of a development server. It holds the files of `operations/embedded/`, and:

services.json   {"http","database","redis"}: the URLs with passwords, present while the server is ready
jwt-secret      signs its tokens, kept so that they outlive a restart
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from streamer.errors import SettingsError
from streamer.protocol.fields import shown

DATA = Path(".venta")
"""The default folder."""
SECRET = "jwt-secret"
SERVICES = "services.json"
REMEDY = "delete the file and start `streamer dev` again, or choose another folder by --data"


def make_folder(data: Path) -> Path:
    """Creates the data folder and returns its absolute path."""
    try:
        # private; under root PostgreSQL runs as another user and has to pass through
        data.mkdir(0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        if not os.access(data, os.W_OK | os.X_OK):
            raise PermissionError("it is not writable")
    except OSError as refused:
        raise SettingsError(f"cannot use --data {data}: {refused.strerror or refused}; choose another folder") from None
    return data.absolute()


def kept_secret(data: Path) -> str:
    """Returns the token secret in this folder, creating it on the first start."""
    path = data / SECRET
    if not path.exists():
        _write(path, secrets.token_urlsafe(48))
    return read_secret(data)


def read_secret(data: Path) -> str:
    """Returns the token secret in this folder; raises OSError when there is none."""
    return (data / SECRET).read_text().strip()


def read_services(data: Path) -> dict[str, str]:
    """Returns the URLs of the server that runs in this folder; empty when none is ready.

    Raises:
        SettingsError: The file is JSON, but no object of URLs.
    """
    path = data / SERVICES
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if type(found) is not dict:
        raise SettingsError(f"{path} must be a JSON object, not {shown(found)}: {REMEDY}")
    for name, url in found.items():
        if type(url) is not str:
            raise SettingsError(f"{name} in {path} must be a URL, not {shown(url)}: {REMEDY}")
    return found


def _write(path: Path, text: str) -> None:
    """Writes a private file that is complete or absent."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with open(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)


@contextlib.contextmanager
def published(path: Path, urls: dict[str, str]) -> Iterator[None]:
    """Keeps the URLs in a file while the server is ready."""
    text = json.dumps(urls)
    _write(path, text)
    try:
        yield
    finally:
        # Another server may have written its own file, where both use given services.
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                path.unlink()
