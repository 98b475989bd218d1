"""Kernels and QEMUs for guests, found or made."""
