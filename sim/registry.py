"""One registry per kind of replaceable part; third parties add to it by the entry-point group ``kvsim.plugins``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from kvsim.errors import ScenarioError, did_you_mean

T = TypeVar("T")
GROUP = "kvsim.plugins"


class Registry(Generic[T]):
    """Names to implementations. Entry points are called ``kind:name``; only the one that is asked for is loaded."""

    def __init__(self, kind: str, api_version: int) -> None:
        self.kind = kind
        self.api_version = api_version
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator. A name that is taken is an error."""

        def add(item: T) -> T:
            if name in self._known:
                raise ValueError(f"a {self.kind} called '{name}' is registered already")
            self._known[name] = item
            return item

        return add

    def names(self) -> list[str]:
        """All names, those of plug-ins included."""
        return sorted({*self._known, *(name for name, _ in self._plugins())})

    def get(self, name: str) -> T:
        """The implementation called ``name``.

        Raises:
            ScenarioError: there is none, or a plug-in was written for another version of the interface.
        """
        if name in self._known:
            return self._known[name]
        for plugin_name, entry in self._plugins():
            if plugin_name != name:
                continue
            try:
                item: T = entry.load()
            except Exception as error:  # a third party's module may fail in any way
                raise ScenarioError(
                    f"{self.kind} '{name}': its plug-in {entry.value} does not load: {error}"
                ) from error
            version = getattr(item, "api_version", None)
            if version != self.api_version:
                raise ScenarioError(
                    f"{self.kind} '{name}': plug-in {entry.value} has api_version {version}, kvsim needs {self.api_version}"
                )
            return item
        raise ScenarioError(f"no {self.kind} is called '{name}'{did_you_mean(name, self.names())}")

    def _plugins(self) -> Iterator[tuple[str, EntryPoint]]:
        prefix = f"{self.kind.replace(' ', '_')}:"
        for entry in entry_points(group=GROUP):
            if entry.name.startswith(prefix):
                yield entry.name[len(prefix) :], entry
