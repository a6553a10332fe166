"""Re-runnable targets that make the weights shipped with the package, from public-role data only."""
