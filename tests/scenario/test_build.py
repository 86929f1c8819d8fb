"""Plain data of the simulator from a scenario."""

import json
from pathlib import Path

import pytest

from kvsim.errors import CapacityError, ScenarioError, TraceError
from kvsim.hardware.load import load_gpu, load_link, load_media_price
from kvsim.hardware.spec import LinkSpec
from kvsim.scenario.build import build_gpu, build_memory, build_tiers
from kvsim.scenario.load import load_scenario
from kvsim.scenario.workload import build_trace

S = 10**9
CHAT = (
    "{name: chat, generator: chat, options: {sessions: 10, turns: 3, user_tokens: 20, output_tokens: 5, "
    "arrivals: {process: constant, rate_per_s: 1.0}}}"
)


def test_tiers(rag_mix: Path) -> None:
    ddr, disk = build_tiers(load_scenario(rag_mix))
    assert ddr.link == load_link("pcie-gen5-x16")  # the H100's way to host memory
    assert ddr.usd_per_gb_month == load_media_price("ddr5")
    assert disk.link == LinkSpec("disk-link", 7 * 10**9, 4 * 10**9, 80_000)
    assert disk.usd_per_gb_month is None


def test_tier_with_a_preset_link(rag_mix: Path) -> None:
    disk = build_tiers(load_scenario(rag_mix, ["cache.tiers.disk.link=nvme"]))[1]
    assert disk.link == load_link("nvme")
    assert disk.usd_per_gb_month == load_media_price("nvme")


def test_price_of_a_gpu_hour_can_be_set(rag_mix: Path) -> None:
    assert build_gpu(load_scenario(rag_mix)) == load_gpu("h100-sxm")
    gpu = build_gpu(load_scenario(rag_mix, ["cluster.usd_per_gpu_hour=1.5"]))
    assert gpu.usd_per_hour == 1.5
    assert gpu.sources["usd_per_hour"] == "cluster.usd_per_gpu_hour of the scenario"


def test_memory(rag_mix: Path) -> None:
    assert build_memory(load_scenario(rag_mix, ["cache.num_gpu_blocks=4000"])).num_blocks == 4000
    with pytest.raises(CapacityError):
        build_memory(load_scenario(rag_mix, ["model=llama-3.1-70b"]))


def test_trace_starts_at_zero_and_takes_the_asked_rate(rag_mix: Path) -> None:
    """The file has 20 requests from 3 s on, 2 a second."""
    own = build_trace(load_scenario(rag_mix, ["workload.requests_per_s=null"]))
    assert own.arrival_ns.tolist() == [i * S // 2 for i in range(20)]
    faster = build_trace(load_scenario(rag_mix, ["workload.requests_per_s=4"]))
    assert faster.arrival_ns.tolist() == [i * S // 4 for i in range(20)]


def test_cuts(rag_mix: Path) -> None:
    def rows(*overrides: str) -> list[int]:
        scenario = load_scenario(rag_mix, ["workload.requests_per_s=null", *overrides])
        return [tokens - 100 for tokens in build_trace(scenario).input_tokens.tolist()]

    assert rows("workload.max_requests=3") == [0, 1, 2]
    assert rows("workload.duration=2 s") == [0, 1, 2, 3]  # arrivals at 0, 0.5, 1 and 1.5 s
    assert rows("workload.sources.0.slice={start: 2 s, end: 4 s}") == [4, 5, 6, 7]
    assert rows("workload.sources.0.slice={start: 2 s, max_requests: 1}") == [4]


def test_a_batch_in_the_order_of_its_prefixes(rag_mix: Path) -> None:
    """Two prefixes in turn, a request every half second: the times stay, the prefixes come one after the other."""
    lines = [
        {"arrival_s": i / 2, "input_tokens": 100 + i, "output_tokens": 5, "segments": [["ab"[i % 2], 100]]}
        for i in range(6)
    ]
    (rag_mix.parent / "data" / "requests.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    overrides = ["workload.requests_per_s=null", "workload.order=prefix"]
    trace = build_trace(load_scenario(rag_mix, overrides))
    assert trace.arrival_ns.tolist() == [i * S // 2 for i in range(6)]
    assert trace.input_tokens.tolist() == [100, 102, 104, 101, 103, 105]


def test_mix_by_share(rag_mix: Path) -> None:
    sources = (
        f"workload.sources=[{{name: rag, file: data/requests.jsonl, share: 0.5}}, {CHAT[:-1]}, share: 0.5}}]"
    )
    trace = build_trace(load_scenario(rag_mix, [sources, "workload.requests_per_s=6"]))
    trace.check_integrity()
    # shares hold for requests, so a third as many conversations of three turns arrive
    arrivals_of_chat = trace.arrival_ns[(trace.session >= 0) & (trace.after < 0)]
    assert arrivals_of_chat[1] - arrivals_of_chat[0] == S
    arrivals_of_rag = trace.arrival_ns[trace.session < 0]
    assert arrivals_of_rag[3] - arrivals_of_rag[0] == S


def test_rate_counts_requests_of_closed_loops_too(rag_mix: Path) -> None:
    trace = build_trace(load_scenario(rag_mix, [f"workload.sources=[{CHAT}]", "workload.requests_per_s=6"]))
    starts = trace.arrival_ns[trace.after < 0]
    assert starts[1] - starts[0] == S // 2  # two conversations of three turns a second


def test_another_source_changes_nothing_in_what_a_generator_draws(rag_mix: Path) -> None:
    chat = CHAT.replace("constant", "poisson")
    alone = build_trace(
        load_scenario(rag_mix, [f"workload.sources=[{chat}]", "workload.requests_per_s=null"])
    )
    mixed = build_trace(
        load_scenario(
            rag_mix,
            [
                f"workload.sources=[{{file: data/requests.jsonl}}, {chat}]",
                "workload.requests_per_s=null",
            ],
        )
    )
    both = mixed.arrival_ns[(mixed.session >= 0) & (mixed.after < 0)]
    first = alone.arrival_ns[alone.after < 0][: len(both)]
    assert both.tolist() == first.tolist()


def test_mistakes_name_the_source(rag_mix: Path) -> None:
    def line(*overrides: str) -> str:
        with pytest.raises(TraceError) as error:
            build_trace(load_scenario(rag_mix, overrides))
        return str(error.value)

    assert line("workload.sources.0.reader=mooncak") == (
        "workload.sources.0 (rag): no trace reader is called 'mooncak'; did you mean 'mooncake'?"
    )
    assert line("workload.sources.0.slice.start=1 h") == (
        "workload.sources.0 (rag): no request is left; widen the slice"
    )


def test_a_calibrated_profile_stands_for_its_gpu(rag_mix: Path, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "{format: 1, name: mine, source: kvsim calibrate, tables: {gemm: {file: x}}, gpu: {name: my-gpu, device: My GPU, "
        "hbm_bytes: 24000000000, hbm_bytes_per_s: 1.0e+12, flops_per_s: {bfloat16: 1.5e+14}, host_link: pcie-gen4-x16}}"
    )
    gpu = build_gpu(load_scenario(rag_mix, [f"cluster.gpu={profile}", "cluster.usd_per_gpu_hour=0.5"]))
    assert (gpu.name, gpu.hbm_bytes, gpu.hbm_bytes_per_s) == ("my-gpu", 24 * 10**9, 1e12)
    assert (gpu.flops_per_s, gpu.host_link, gpu.usd_per_hour) == ({"bfloat16": 1.5e14}, "pcie-gen4-x16", 0.5)


def test_a_profile_of_a_preset_gpu_is_that_gpu(rag_mix: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{gpu: {name: h100-sxm}}")
    scenario = load_scenario(rag_mix, [f"cluster.gpu={tmp_path / 'mine.yaml'}"])
    assert build_gpu(scenario) == load_gpu("h100-sxm")


@pytest.mark.parametrize("text", ["{}", "{gpu: {name: new}}", "[1]", "{gpu: 1}"])
def test_what_is_no_profile_of_a_gpu(rag_mix: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ScenarioError, match=r"cluster\.gpu.*mine\.yaml: (not a profile|its gpu has no)"):
        load_scenario(rag_mix, [f"cluster.gpu={tmp_path / 'mine.yaml'}"])
