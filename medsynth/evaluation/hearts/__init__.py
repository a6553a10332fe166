"""Stacks of hearts measured: what they show, and whether it is what was asked for."""
