"""``kvsim plan``: the cheapest configuration that meets the SLOs, and what stands behind it."""
