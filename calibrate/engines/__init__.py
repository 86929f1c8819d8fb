"""Measuring a real serving engine: plans of microbenchmarks and check runs, and the program that runs them."""
