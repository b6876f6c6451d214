"""Which vendors are on the map, who watches them, and what changed. Pure, the ticker apart."""
