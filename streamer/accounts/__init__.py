"""Who may do what: tokens, permissions, entitlements."""
