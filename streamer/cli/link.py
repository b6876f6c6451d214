"""`streamer link`: a sign-in link for a vendor's phone, with its QR code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import segno
import typer

from streamer import settings
from streamer.accounts.sign_in import LIFETIME, make_link
from streamer.dev.folder import DATA, read_secret, read_services
from streamer.errors import SettingsError


def link(
    vendor_id: Annotated[str, typer.Argument(metavar="VENDOR", help="vendors.id of the vendor to sign in as.")],
    url: Annotated[str | None, typer.Option(help="Public URL of the server; default: STREAMER_PUBLIC_URL.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of `streamer dev`, for its secret.")] = DATA,
) -> None:
    """Print a link and a QR code that sign a phone in as a vendor, once, within 15 minutes."""
    configured = settings.load()
    origin, secret = url or configured.public_url, configured.jwt_secret
    try:
        key = secret.get_secret_value() if secret is not None else read_secret(data)
        origin = origin or read_services(data)["http"]
    except (OSError, KeyError):
        raise SettingsError(
            "a link needs the server's secret and address: set STREAMER_JWT_SECRET and STREAMER_PUBLIC_URL "
            f"(or pass --url), or run `streamer dev`, which keeps both in {data}"
        ) from None
    made = make_link(key, vendor_id, origin.rstrip("/"), time.time())
    segno.make(made.url, error="l", micro=False).terminal(compact=True)
    typer.echo(f"{made.url}\nValid once, for {LIFETIME // 60} minutes.")
