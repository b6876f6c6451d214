"""The path of a ping from a connection to the database: session rules, limits, batches."""
