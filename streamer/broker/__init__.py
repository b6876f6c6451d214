"""Exchange of live state between processes, through Redis."""
