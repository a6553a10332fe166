"""Which of several samples are kept: by their distance, under differential privacy, or by plausible deniability."""
