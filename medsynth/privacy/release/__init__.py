"""What leaves the house: certified releases, and their verification."""
