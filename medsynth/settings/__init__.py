"""What a run is told: sizes, profiles, and how they are read from files."""
