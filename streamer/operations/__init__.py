"""For operators: health, metrics, logs, backups, maintenance."""
