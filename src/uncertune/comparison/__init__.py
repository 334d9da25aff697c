"""Comparison of models on tasks and head to head, on one page."""
