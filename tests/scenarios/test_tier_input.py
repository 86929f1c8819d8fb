"""Tiers of a scenario: what goes together, and one line for what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvsim.cli.main import run_command
from kvsim.cost.profile import load_profile
from kvsim.errors import ScenarioError
from kvsim.hardware.spec import LinkSpec
from kvsim.scenario.build import build_tiers
from kvsim.scenario.load import parse_scenario

DDR = "{name: ddr, capacity: 1 GB}"


@pytest.mark.parametrize(
    ("tiers", "line"),
    [
        (
            "[{name: ddr, capacity: 1 GB, exclusive: true}]",
            "--set cache.tiers.0: an exclusive tier cannot be written 'through'; set write: on_eviction",
        ),
        (
            "[{name: ddr, capacity: 1 GB, decode: 0 GB/s}]",
            "--set cache.tiers.0: decode: 0 B/s never ends a load; leave it out where decoding takes no time",
        ),
        (
            "[{name: ddr, capacity: 1 GB, prefetch: true}]",
            "--set cache.tiers: tier 'ddr' is the nearest one, there is nowhere to prefetch to; set prefetch on a further tier",
        ),
        (
            f"[{DDR}, {{name: disk, capacity: 1 GB, behind: dd}}]",
            "--set cache.tiers: tier 'disk' is behind 'dd', which is none of hbm, ddr",
        ),
        (
            "[{name: ddr, capacity: 1 GB, link: {table: hostcopy}}]",
            "--set cache.tiers.0.link.table: unknown value 'hostcopy'; did you mean 'host_copy'?",
        ),
        (
            "[{name: ddr, capacity: 1 GB, link: {table: disk, memory: pinned}}]",
            "--set cache.tiers.0.link: memory is a key of table host_copy; leave it out for disk",
        ),
        (
            "[{name: ddr, capacity: 1 GB, holds: {keys: false, values: false}}]",
            "--set cache.tiers.0.holds: neither keys nor values: such a tier holds nothing; leave it out",
        ),
        (
            "[{name: ddr, capacity: 1 GB, scope: cluster, holds: {keys: false}}]",
            "--set cache.tiers.0: a cluster's store holds whole blocks, as the rest would lie in one replica's HBM; drop holds",
        ),
        (
            f"[{DDR}, {{name: disk, capacity: 1 GB, holds: {{layers: 0.5}}}}]",
            "--set cache.tiers: all tiers have to hold the same part of a block, as it goes from one to another; "
            "set holds alike",
        ),
        (
            "[{name: ddr, capacity: 1 GB, gpus_per_link: 3}]",
            "cache.tiers.0.gpus_per_link: 3 GPUs a link do not go with 2 GPUs a replica; one has to divide the other",
        ),
    ],
)
def test_tiers_that_do_not_go_together(
    tiers: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "small.yaml"
    scenario.write_text("workload: {sources: [{generator: lengths}]}\n")
    code = run_command(
        ["run", str(scenario), "--set", f"cache.tiers={tiers}", "--set", "cluster.tensor_parallel=2"]
    )
    assert (code, capsys.readouterr().err.strip()) == (2, line)
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def links(tiers: list[dict[str, object]], gpus: int = 1) -> list[LinkSpec]:
    link = {"read": "10 GB/s", "write": "5 GB/s"}
    data = {
        "workload": {"sources": [{"generator": "lengths"}]},
        "cluster": {"tensor_parallel": gpus},
        "cache": {"tiers": [{"link": link, "capacity": "1 GB", **tier} for tier in tiers]},
    }
    return [spec.link for spec in build_tiers(parse_scenario(data, base=Path()))]


def test_links_of_replicas_of_one_gpu() -> None:
    ddr, disk, store = links(
        [{"name": "ddr", "gpus_per_link": 2}, {"name": "disk"}, {"name": "store", "scope": "cluster"}]
    )
    assert (ddr.read_bytes_per_s, ddr.replicas) == (10e9, 2)
    assert (disk.replicas, disk.behind) == (1, "")  # the tier before it
    assert (store.replicas, store.behind) == (0, "ddr")  # all; not through the disk


@pytest.mark.parametrize(
    ("sharing", "rate", "replicas"), [(1, 40e9, 1), (2, 20e9, 1), (4, 10e9, 1), (8, 10e9, 2)]
)
def test_links_of_replicas_of_four_gpus(sharing: int, rate: float, replicas: int) -> None:
    """One host link a GPU unless several share one; what lies further is one device."""
    ddr, disk = links([{"name": "ddr", "gpus_per_link": sharing}, {"name": "disk"}], gpus=4)
    assert (ddr.read_bytes_per_s, ddr.write_bytes_per_s, ddr.replicas) == (rate, rate / 2, replicas)
    assert (disk.read_bytes_per_s, disk.replicas) == (10e9, 1)


def test_a_link_priced_by_the_profile() -> None:
    """2 MiB pinned to the GPU: the shipped table has that very point; four GPUs have four links."""
    table = load_profile("h100-sxm-measured").rows("host_copy")
    point = table.select(direction="h2d", memory="pinned", num_bytes=2**21, pieces=1)
    (link,) = links([{"name": "ddr", "link": {"table": "host_copy"}}])
    (four,) = links([{"name": "ddr", "link": {"table": "host_copy"}}], gpus=4)
    assert link.times is not None and four.times is not None
    assert link.times[0](2**21, 1) == (round(point.latency_ns[0]), "measured")
    assert four.times[0](2**23, 4) == link.times[0](2**21, 1)
    assert four.read_bytes_per_s == 4 * link.read_bytes_per_s > 0


def test_a_profile_without_the_table() -> None:
    with pytest.raises(
        ScenarioError, match=r"tiers.0.link: profile a100-80gb-sxm-vllm-0.14.0: no table 'host_copy'"
    ):
        parse_scenario(
            {
                "workload": {"sources": [{"generator": "lengths"}]},
                "cluster": {"gpu": "a100-80gb-sxm"},
                "cache": {"tiers": [{"name": "ddr", "capacity": "1 GB", "link": {"table": "host_copy"}}]},
            },
            base=Path(),
        )


def test_tiers_without_room_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"input_tokens": 900, "output_tokens": 40}
    lines = [{**row, "arrival_s": 0.01 * i, "segments": [[f"doc-{i % 9}", 800]]} for i in range(60)]
    Path("trace.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("small.yaml").write_text("workload: {sources: [{file: trace.jsonl}]}\n")
    summaries = []
    for number, tiers in enumerate(["[]", f"[{DDR.replace('1 GB', '0 GB')}]"]):
        arguments = [
            "--set",
            f"cache.tiers={tiers}",
            "--set",
            "cache.num_gpu_blocks=117",
            "--out",
            str(number),
        ]
        assert run_command(["run", "small.yaml", "--json", "--check", *arguments]) == 0
        summaries.append(json.loads(capsys.readouterr().out))
    without, empty = summaries
    assert without["preemptions"] > 0
    assert [tier["name"] for tier in empty["tiers"]] == ["hbm", "ddr"]
    for key in ("ttft_s", "e2e_s", "makespan_s", "preemptions"):
        assert empty[key] == without[key]
