"""Ours against other implementations: ``python -m benchmarks.head`` and ``python -m benchmarks.step``."""
