"""Evaluation: what a trained model gained in distribution, and what it lost elsewhere."""
