"""One registry per kind of replaceable part; third parties add to it by the entry-point group ``kvsim.plugins``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvsim.errors import ScenarioError, did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
PolicySpec = str | Mapping[str, Any]
"""A name, or {policy: name, option: value, ...}: options are keyword arguments of what is registered under the name."""
GROUP = "kvsim.plugins"


class Registry(Generic[T]):
    """Names to implementations. Entry points are called ``kind:name``; only the one that is asked for is loaded."""

    def __init__(self, kind: str, api_version: int, modules: Mapping[str, str] | None = None) -> None:
        """``modules``: the modules of kvsim that register what they have when they are imported, by name; that is when
        somebody asks for the name."""
        self.kind = kind
        self.api_version = api_version
        self._modules = dict(modules or {})
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator. A name that is taken is an error."""

        def add(item: T) -> T:
            if name in self._known or self._modules.get(name, item.__module__) != item.__module__:
                raise ValueError(f"a {self.kind} called '{name}' is registered already")
            self._known[name] = item
            return item

        return add

    def names(self) -> list[str]:
        """All names, those of plug-ins included."""
        return sorted({*self._known, *self._modules, *(name for name, _ in self._plugins())})

    def get(self, name: str) -> T:
        """The implementation called ``name``.

        Raises:
            ScenarioError: there is none, or a plug-in was written for another version of the interface.
        """
        if name in self._modules:
            import_module(self._modules[name])
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
        from importlib.metadata import entry_points

        prefix = f"{self.kind.replace(' ', '_')}:"
        for entry in entry_points(group=GROUP):
            if entry.name.startswith(prefix):
                yield entry.name[len(prefix) :], entry


def make_policy(registry: Registry[type[T]], spec: PolicySpec) -> T:
    """A new object of the class that ``spec`` names, made with its options.

    Raises:
        ScenarioError: there is no such name, or it has no such option, needs another one or cannot use a value.
    """
    name, options = (spec, {}) if isinstance(spec, str) else (spec["policy"], dict(spec))
    options.pop("policy", None)
    found, kind = registry.get(name), registry.kind
    parameters = inspect.signature(found).parameters
    for key in options:
        if key not in parameters:
            hint = did_you_mean(key, parameters) if parameters else "; it has none"
            raise ScenarioError(f"{kind} '{name}' has no option '{key}'{hint}")
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in options:
            raise ScenarioError(f"{kind} '{name}' needs the option '{key}'")
    try:
        return found(**options)
    except ScenarioError as error:
        raise ScenarioError(f"{kind} '{name}': {error}") from None


def number_option(name: str, value: object, low: float, high: float = float("inf")) -> float:
    """``value`` as a number from ``low`` to ``high``.

    Raises:
        ScenarioError: it is none, or lies outside.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        what = f"from {low:g} to {high:g}" if high < float("inf") else f"of at least {low:g}"
        raise ScenarioError(f"{name}: expected a number {what}, found {value!r}")
    return value


def flag_option(name: str, value: object) -> bool:
    """``value`` as true or false.

    Raises:
        ScenarioError: it is neither.
    """
    if not isinstance(value, bool):
        raise ScenarioError(f"{name}: expected true or false, found {value!r}")
    return value


def choice_option(name: str, value: object, choices: Sequence[str]) -> str:
    """``value`` as one of ``choices``.

    Raises:
        ScenarioError: it is none of them.
    """
    if value not in choices:
        raise ScenarioError(f"{name}: unknown value {value!r}{did_you_mean(str(value), choices)}")
    return str(value)
