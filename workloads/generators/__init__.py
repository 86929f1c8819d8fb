"""Generators of synthetic workloads, one module a shape. Importing the package registers all of them."""

from kvsim.workloads.generators import chat, edits, lengths, prefixes, queries, rag
from kvsim.workloads.generators.base import generate, generators

__all__ = ["chat", "edits", "generate", "generators", "lengths", "prefixes", "queries", "rag"]
