"""`streamer dev`: services of its own and simulated vendors."""
