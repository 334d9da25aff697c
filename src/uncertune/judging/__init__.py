"""Judges, which decide which of two answers to a prompt is better."""
