"""Whole answers, reused in front of the router."""
