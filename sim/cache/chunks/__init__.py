"""KV reuse that is not a prefix: segments of prompts, found by content wherever they stand. ``docs/reuse.md``."""
