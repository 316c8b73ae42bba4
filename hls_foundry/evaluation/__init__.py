"""Metrics on whole test chips, the spectral-index baseline, and promotion."""
