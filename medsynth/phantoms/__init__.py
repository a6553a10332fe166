"""Simulators of patients whose anatomy, findings and identity are known, because they were drawn."""
