"""Judges: which of two answers to a prompt is the better one."""
