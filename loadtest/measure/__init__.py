"""Measurements: delays, counts over time, CPU and memory, clocks."""
