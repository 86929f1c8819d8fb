"""Workloads: the trace normal form, readers of trace files, generators, operations and statistics."""

from kvsim.workloads.generators import generate, generators
from kvsim.workloads.readers import read, readers
from kvsim.workloads.trace import SEGMENT_KINDS, Trace
from kvsim.workloads.writer import write_kvsim_jsonl

__all__ = ["SEGMENT_KINDS", "Trace", "generate", "generators", "read", "readers", "write_kvsim_jsonl"]
