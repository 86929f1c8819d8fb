"""A registry: names to functions of one kind, filled by a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from kvsim.errors import TraceError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])

EXAMPLES = {
    "requests": "1000",
    "sessions": "100",
    "arrivals": "{process: poisson, rate_per_s: 1}",
    "input_tokens": "900",
    "output_tokens": "120",
    "turns": "4",
    "user_tokens": "100",
    "groups": "20",
    "prefix_tokens": "500",
    "corpus_chunks": "500",
    "chunk_tokens": "400",
    "chunks_per_query": "5",
    "query_tokens": "60",
    "queries": "500",
    "trace": "my_trace.jsonl",
    "rate_per_s": "1",
    "cv": "2",
    "amplitude": "0.5",
    "value": "500",
    "low": "100",
    "high": "900",
    "mean": "500",
    "median": "500",
    "sigma": "1.0",
}
"""Values of required options as a scenario writes them, for messages."""


class Registry(Mapping[str, F], Generic[F]):
    """``@registry.register("name")`` adds a function; a look-up of an unknown name says what there is."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._functions: dict[str, F] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator that files the function under ``name``; a name is given once."""

        def add(function: F) -> F:
            if name in self._functions:
                raise ValueError(f"the {self.kind} '{name}' is already registered")
            self._functions[name] = function
            return function

        return add

    def __getitem__(self, name: str) -> F:
        if name not in self._functions:
            raise TraceError(f"no {self.kind} is called '{name}'{did_you_mean(name, self._functions)}")
        return self._functions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def call(self, name: str, positional: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        """Call the function called ``name``; a TraceError names an unknown option, or all missing ones."""
        function = self[name]
        parameters = inspect.signature(function).parameters
        known = [key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
        for key in options:
            if key not in known:
                raise TraceError(f"the {self.kind} '{name}' has no option '{key}'{did_you_mean(key, known)}")
        missing = [
            key for key in known if parameters[key].default is inspect.Parameter.empty and key not in options
        ]
        if missing:
            names = ", ".join(f"'{key}'" for key in missing)
            values = ", ".join(f"{key}: {EXAMPLES[key]}" for key in missing if key in EXAMPLES)
            raise TraceError(
                f"the {self.kind} '{name}' needs the option{'s' * (len(missing) > 1)} {names}"
                f"{f', such as {{{values}}}' if values else ''}; see docs/workloads.md"
            )
        return function(*positional, **options)
