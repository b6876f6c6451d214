"""What becomes of a ping until it is stored."""
