"""What lies between a step's matrix products and attention: norms, rotary embedding, activation, KV write, sampling.

A profile that holds these kernels prices them; for one that does not (imported tables do not), the times of
:data:`STAND_IN` are scaled by the bandwidth of the two GPUs: *derived*.
"""

from __future__ import annotations

from dataclasses import replace

from kvsim.cost.curve import Array
from kvsim.cost.generic import TablePricer
from kvsim.cost.lattice import quantise, quantise_array
from kvsim.cost.profile import Profile, list_profiles, load_profile
from kvsim.cost.setting import Setting, worst

STAND_IN = "h100-sxm-measured"  # a shipped profile that has every kernel
NEEDED = ("rms_norm", "rotary", "silu_and_mul", "kv_write", "sampling")
NORMS = 2  # of each layer


class Elementwise:
    """Prices by tokens of one step of one model on one GPU. ``covered`` false: no profile has the kernels."""

    def __init__(self, setting: Setting) -> None:
        source, self._scale, self._derived = setting.profile, 1.0, False
        if not _has_all(source):
            if STAND_IN not in list_profiles():
                self._pricers: dict[str, TablePricer] = {}
                return
            source = load_profile(STAND_IN)
            self._scale = source.header["gpu"]["hbm_bytes_per_s"] / setting.gpu.hbm_bytes_per_s
            self._derived = True
        self._layers = setting.model.num_layers
        names = ["rms_norm", "rotary", "kv_write", "sampling[greedy]"]
        if setting.model.moe is None:  # experts' activation is in the moe table
            names.append("silu_and_mul")
        lent = replace(setting, profile=source)
        self._pricers = {name.partition("[")[0]: TablePricer(name, lent) for name in names}

    @property
    def covered(self) -> bool:
        return bool(self._pricers)

    def layers(self, tokens: Array) -> list[tuple[str, str | list[str], Array]]:
        """(kernel, provenance, nanoseconds of each) of all layers and the last norm for numbers of tokens."""
        found = []
        for name, pricer in self._pricers.items():
            if name == "sampling":
                continue
            calls = (NORMS * self._layers + 1) / self._layers if name == "rms_norm" else 1.0
            time_ns, provenance = pricer.column("tokens", tokens)
            if self._derived and isinstance(provenance, str):
                provenance = worst(provenance, "derived")
            elif self._derived:
                provenance = [worst(one, "derived") for one in provenance]
            found.append((name, provenance, quantise_array(time_ns * calls * self._scale)))
        return found

    def sampled(self, rows: int) -> list[tuple[str, float, str]]:
        """The same of choosing one token for each of ``rows`` sequences: once a step."""
        if "sampling" not in self._pricers:
            return []
        return [self._scaled("sampling", self._pricers["sampling"].price({"rows": rows}), 1 / self._layers)]

    def _scaled(self, name: str, priced: tuple[float, str], calls: float) -> tuple[str, float, str]:
        time_ns, provenance = priced
        provenance = worst(provenance, "derived") if self._derived else provenance
        return name, quantise(time_ns * calls * self._scale), provenance


def _has_all(profile: Profile) -> bool:
    return all(profile.has(name) for name in NEEDED)
