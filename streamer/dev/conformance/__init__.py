"""The conformance kit: plays the server's part for a client under test, and judges it from outside."""
