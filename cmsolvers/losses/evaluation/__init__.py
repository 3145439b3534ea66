"""How a loss is evaluated: what a formula may ask, and the decorator that makes a loss of it."""
