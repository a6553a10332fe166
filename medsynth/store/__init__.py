"""What is kept and found again: trained runs, hashes of content, and of code."""
