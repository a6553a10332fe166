"""The words that images are described by, and asked for in."""
