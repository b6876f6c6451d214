"""PostgreSQL: all SQL is here."""
