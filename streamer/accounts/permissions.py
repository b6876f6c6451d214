"""Which vendors a user may report for."""

from __future__ import annotations

from streamer.accounts.dataloader import DataLoader
from streamer.accounts.tokens import Identity
from streamer.errors import ErrorCode, ProtocolError
from streamer.storage.store import VendorRow


async def owned_vendor(vendors: DataLoader, identity: Identity, vendor_id: str | None) -> VendorRow:
    """Returns the named vendor of a user, or the user's only one; raises ProtocolError when there is none."""
    if vendor_id is not None:
        row = await vendors.vendor(vendor_id)
        if row is None:
            raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"there is no vendor {vendor_id!r}")
        if row.clerk_id != identity.clerk_id:
            raise ProtocolError(ErrorCode.FORBIDDEN, f"vendor {vendor_id!r} belongs to another user")
        return row
    rows = await vendors.vendors_of(identity.clerk_id)
    if not rows:
        raise ProtocolError(ErrorCode.VENDOR_NOT_FOUND, f"user {identity.clerk_id!r} has no vendor")
    if len(rows) > 1:
        raise ProtocolError(
            ErrorCode.MISSING_FIELD, f"user {identity.clerk_id!r} has {len(rows)} vendors: name one by ?vendorId="
        )
    return rows[0]
