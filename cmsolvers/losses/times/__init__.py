"""Distributions of levels, functions of (key, step) alone, and curricula."""
