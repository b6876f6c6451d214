"""`streamer dev`: embedded services and simulated vendors."""
