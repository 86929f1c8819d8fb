"""Published kernel timings turned into profiles."""
