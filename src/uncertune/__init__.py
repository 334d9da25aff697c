"""Uncertainty-aware fine-tuning of language models."""
