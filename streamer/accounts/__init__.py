"""Authentication and authorization: tokens, permissions, entitlements."""
