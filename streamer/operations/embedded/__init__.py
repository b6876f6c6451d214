"""A PostgreSQL and a Valkey of our own, for `streamer dev`, tests and restore tests."""

from streamer.operations.embedded.postgres import PostgresServer
from streamer.operations.embedded.programs import postgres_programs
from streamer.operations.embedded.server import PORTS, EmbeddedServer, free_port
from streamer.operations.embedded.valkey import ValkeyServer

__all__ = ["PORTS", "EmbeddedServer", "PostgresServer", "ValkeyServer", "free_port", "postgres_programs"]
