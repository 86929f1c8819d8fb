"""ServeGen samples: CSV with ``timestamp_s``, ``tenant``, ``input_length``, ``output_length``.

Source: https://github.com/alibaba/ServeGen (Apache-2.0), sampled per client. Further columns are not used.
"""

from __future__ import annotations

from pathlib import Path

from kvsim.workloads.builder import TraceBuilder
from kvsim.workloads.files import csv_rows
from kvsim.workloads.readers.base import register
from kvsim.workloads.trace import Trace


@register("servegen", lambda fields: {"timestamp_s", "tenant", "input_length", "output_length"} <= fields)
def read_servegen(path: Path, source: dict[str, str]) -> Trace:
    """Read a ServeGen sample."""
    builder = TraceBuilder()
    for row in csv_rows(path):
        builder.add(
            row.time_ns("timestamp_s"),
            row.whole("input_length", 1),
            row.whole("output_length", 1),
            tenant=row.name("tenant"),
        )
    return builder.build(path.name, source)
