"""Shapes on the sphere and the grid. Pure."""
