"""The pages that the server serves."""
