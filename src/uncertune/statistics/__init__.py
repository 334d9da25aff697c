"""Estimates with intervals: over seeds, paired documents and judgements. NumPy and SciPy only."""
