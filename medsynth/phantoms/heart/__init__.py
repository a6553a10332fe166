"""Beating hearts as short-axis stacks."""
