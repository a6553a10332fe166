"""Fidelity, diversity and the statistics that every number comes with."""
