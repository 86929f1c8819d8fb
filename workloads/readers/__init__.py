"""Readers of trace files, one module a format. Importing the package registers all of them."""

from kvsim.workloads.readers import agent, azure, chunks, kvsim_jsonl, mooncake, ragpulse, servegen, sharegpt
from kvsim.workloads.readers.base import read, readers, register

__all__ = [
    "agent",
    "azure",
    "chunks",
    "kvsim_jsonl",
    "mooncake",
    "ragpulse",
    "read",
    "readers",
    "register",
    "servegen",
    "sharegpt",
]
