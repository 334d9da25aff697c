"""Sweeps: arms × seeds from one file, each trained and measured, in one table with intervals over seeds."""
