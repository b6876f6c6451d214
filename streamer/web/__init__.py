"""The pages that the server hands out."""
