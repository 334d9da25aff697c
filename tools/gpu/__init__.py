"""Everything that a GPU is needed for, in one command and a few minutes: ``python -m tools.gpu``."""
