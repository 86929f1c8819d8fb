"""Many runs of one scenario: its grid of overrides, the processes that run them, and what the results say together."""
