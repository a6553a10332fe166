"""Everything that makes or tests a privacy claim."""
