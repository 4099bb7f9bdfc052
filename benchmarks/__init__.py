"""Measurements that anyone can repeat: ``python -m benchmarks [--only NAME,NAME]``; see README.md in this folder."""
