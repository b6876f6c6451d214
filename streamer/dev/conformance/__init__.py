"""The conformance kit: acts as the server for a client under test, and checks its behaviour from outside."""
