"""Measurements that anyone can repeat: ``python -m benchmarks [--only NAME,NAME]``."""
