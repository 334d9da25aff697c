"""Sweeps: arms × seeds, each trained and measured, in one table with intervals over seeds."""
