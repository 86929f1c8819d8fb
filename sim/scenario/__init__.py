"""Scenario files: what they may say, how they are read, and what the simulator makes of them."""
