"""The vendors on the map, their watchers, and the changes. Pure, the ticker apart."""
