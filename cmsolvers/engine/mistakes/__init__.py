"""Mistakes that make garbage without a word: what tells them, and when it is looked for."""
