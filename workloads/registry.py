"""A registry: names to functions of one kind, filled by a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from kvsim.errors import TraceError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


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
        """Call the function called ``name``; an unknown or missing option is a TraceError that names it."""
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
            raise TraceError(f"the {self.kind} '{name}' needs the option '{missing[0]}'; give it")
        return function(*positional, **options)
