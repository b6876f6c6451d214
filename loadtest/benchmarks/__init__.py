"""Measurements that are more than one run."""
