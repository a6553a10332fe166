"""Differential privacy: training, accounting and synthesis in which no patient counts for more than epsilon."""
