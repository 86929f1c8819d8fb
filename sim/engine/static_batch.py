"""Static batches: requests that start together, padded to the longest prompt and the longest answer among them."""

from __future__ import annotations

from collections.abc import Iterable

from kvsim.entities import Request

NO_BUDGET = 1 << 60
"""Tokens: prompts of a static batch are prefilled in one step, however many they are."""


class StaticBatch:
    """The batch that is being filled; every request in it takes the room of the padded one."""

    def __init__(self, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self.input_tokens = self.output_tokens = 0

    def takes(self, request: Request) -> bool:
        """Look. With ``request`` padding would make no sequence longer than the model takes."""
        return sum(self._longest_with(request)) <= self.max_model_len

    def join(self, request: Request) -> None:
        """Change. ``request`` starts with the others."""
        self.input_tokens, self.output_tokens = self._longest_with(request)

    def _longest_with(self, request: Request) -> tuple[int, int]:
        return max(self.input_tokens, request.input_tokens), max(self.output_tokens, request.output_tokens)

    def pad(self, requests: Iterable[Request]) -> None:
        """Change. Tell the requests that have joined how long they are for the GPU."""
        for request in requests:
            request.pad_input = self.input_tokens - request.input_tokens
            request.pad_output = self.output_tokens - request.output_tokens
