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
from kvsim.model.spec import ModelSpec

STAND_IN = "h100-sxm-measured"  # a shipped profile that has every kernel
NEEDED = ("rms_norm", "rotary", "silu_and_mul", "kv_write", "sampling")


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
        self._calls = _calls(setting.model)
        names = [*self._calls, "sampling[greedy]"]
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
            calls = self._calls[name]
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


def _calls(model: ModelSpec) -> dict[str, float]:
    """Calls of each kernel but sampling, over the number of layers.

    Experts' activation is in their table; latent attention has its rotary embedding and its write in its own. Nemotron-H has
    no rotary embedding, and squared ReLU moves two thirds of what SiLU of a gate does.
    """
    layers = model.num_layers
    calls = {"rms_norm": (model.norms_per_layer * layers + 1) / layers}
    if not model.latent:
        if not model.state:
            calls["rotary"] = 1.0
        calls["kv_write"] = model.attention_layers / layers
    if model.dense_layers:
        calls["silu_and_mul"] = model.dense_layers / layers * (model.mlp_matrices / 3)
    return calls


def _has_all(profile: Profile) -> bool:
    return all(profile.has(name) for name in NEEDED)
