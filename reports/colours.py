"""One colour a meaning: after Okabe and Ito's palette, which all common kinds of colour vision tell apart."""

from __future__ import annotations

BLUE, ORANGE, GREEN, VERMILION = "#1f82c0", "#e69f00", "#009e73", "#d55e00"
SKY, PURPLE, GREY = "#56b4e9", "#cc79a7", "#8a9099"

TTFT_PARTS = {"queue_s": ORANGE, "load_s": PURPLE, "prefill_s": BLUE, "host_s": GREY}
PROVENANCE = {"measured": GREEN, "imported": SKY, "derived": ORANGE, "extrapolated": VERMILION}
TIERS = (GREEN, SKY, PURPLE, BLUE, VERMILION)
APPROXIMATE, COMPUTED = ORANGE, GREY


def tier(index: int) -> str:
    """Colour of the tier at this place, HBM first."""
    return TIERS[index % len(TIERS)]
