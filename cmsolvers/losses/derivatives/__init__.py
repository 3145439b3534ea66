"""Derivatives of networks along an ODE: exact in forward mode, or by finite differences."""
