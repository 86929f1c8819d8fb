"""The one family of errors that a user can cause; the command line prints them as one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KvsimError(Exception):
    """A user's mistake: the message says where, what was found and what to do, in one line."""


class ScenarioError(KvsimError):
    """A scenario, preset or plug-in name that cannot be used."""


class TraceError(KvsimError):
    """A trace file that cannot be read; the message names the file and the line."""


class CalibrationError(KvsimError):
    """A profile that cannot be read, or a price that only extrapolation could give."""


class CapacityError(KvsimError):
    """The model, one step of it, or what tiers leave in HBM does not fit the GPU."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of ``known`` in whatever case, else a list of what there is."""
    known = sorted(known)
    folded = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word, known, n=1)
    near = near or [folded[each] for each in difflib.get_close_matches(word.lower(), folded, n=1)]
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
