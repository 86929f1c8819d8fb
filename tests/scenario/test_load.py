"""Scenario files: what is read, and every mistake as one exact line."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from kvsim.errors import ScenarioError
from kvsim.scenario.load import load_scenario, parse_scenario


def line_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as error:
        load_scenario(path, overrides)
    return str(error.value)


def change(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_values_and_defaults(rag_mix: Path) -> None:
    scenario = load_scenario(rag_mix)
    assert scenario.name == "rag_mix"
    assert (scenario.cluster.replicas, scenario.cluster.tensor_parallel) == (2, 1)
    assert scenario.cache.tiers[0].capacity == 64 * 10**9
    assert scenario.cache.tiers[0].link is None
    assert scenario.workload.duration == 5400 * 10**9
    assert (scenario.engine.max_num_seqs, scenario.engine.max_num_batched_tokens) == (256, 8192)
    assert scenario.output.timeline_interval == 10**9


def test_scenarios_are_frozen(rag_mix: Path) -> None:
    with pytest.raises(ValidationError):
        load_scenario(rag_mix).seed = 2  # type: ignore[misc]


def test_resolved_loads_back_to_the_same(rag_mix: Path, tmp_path: Path) -> None:
    scenario = load_scenario(rag_mix)
    resolved = scenario.resolved()
    assert resolved["cache"]["tiers"][0]["capacity"] == "64 GB"
    assert resolved["workload"]["sources"][0]["file"] == str(tmp_path / "data" / "requests.jsonl")
    elsewhere = tmp_path / "results" / "scenario.resolved.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(yaml.safe_dump(resolved))
    assert load_scenario(elsewhere).resolved() == resolved


def test_digest_is_of_the_content_and_not_of_the_folder(rag_mix: Path) -> None:
    moved = rag_mix.parent / "moved"
    (moved / "data").mkdir(parents=True)
    (moved / "data" / "requests.jsonl").write_text("{}")
    (moved / "rag_mix.yaml").write_text(rag_mix.read_text())
    assert load_scenario(moved / "rag_mix.yaml").digest() == load_scenario(rag_mix).digest()
    assert load_scenario(rag_mix, ["seed=2"]).digest() != load_scenario(rag_mix).digest()


def test_a_model_file_beside_the_scenario(rag_mix: Path) -> None:
    from kvsim.scenario.build import build_model

    (rag_mix.parent / "tiny.json").write_text(
        '{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128,'
        ' "vocab_size": 100, "max_position_embeddings": 512}'
    )
    scenario = load_scenario(rag_mix, ["model=tiny.json", "engine.kv_cache_dtype=fp8"])
    assert build_model(scenario).kv_bytes_per_token == 2 * 2 * 64
    assert scenario.resolved()["model"] == str(rag_mix.parent / "tiny.json")


def test_exponents_are_numbers(rag_mix: Path) -> None:
    assert (
        load_scenario(change(rag_mix, "requests_per_s: 6", "requests_per_s: 1e1")).workload.requests_per_s
        == 10.0
    )


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "cache:\n",
            "cache:\n  evicton: lru\n",
            "rag_mix.yaml.cache.evicton: unknown key; did you mean 'eviction'?",
        ),
        ("seed: 1", "sed: 1", "rag_mix.yaml.sed: unknown key; did you mean 'seed'?"),
        (
            "operation: 80 us",
            "operatoin: 80 us",
            "rag_mix.yaml.cache.tiers.1.link.operatoin: unknown key; did you mean 'operation'?",
        ),
        (
            "replicas: 2",
            "replicas: two",
            "rag_mix.yaml.cluster.replicas: expected a whole number, found 'two'",
        ),
        ("replicas: 2", "replicas: 0", "rag_mix.yaml.cluster.replicas: must be at least 1, found 0"),
        (
            "capacity: 64 GB",
            "capacity: 64 GHz",
            "rag_mix.yaml.cache.tiers.0.capacity: unknown unit 'GHz' in '64 GHz'; "
            "known here: B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB",
        ),
        (
            "capacity: 64 GB",
            "capacity: 64",
            "rag_mix.yaml.cache.tiers.0.capacity: 64 has no unit; write '64 GB' or '64 GiB'",
        ),
        (", capacity: 1 TB", "", "rag_mix.yaml.cache.tiers.1.capacity: missing; this key has no default"),
        (
            "load: layerwise",
            "load: layerwis",
            "rag_mix.yaml.cache.tiers.0.load: unknown value 'layerwis'; did you mean 'layerwise'?",
        ),
        ("name: disk", "name: ddr", "rag_mix.yaml.cache: two tiers are called 'ddr'"),
        (
            "llama-3.1-8b",
            "llama-3.1-8",
            "rag_mix.yaml.model: no model preset and no file is called 'llama-3.1-8'; "
            "did you mean 'llama-3.1-8b'?",
        ),
        (
            "h100-sxm",
            "h100-sxn",
            "rag_mix.yaml.cluster.gpu: no GPU is called 'h100-sxn'; did you mean 'h100-sxm'?",
        ),
        (
            "gpu: h100-sxm",
            "gpu: h100-sxm, tensor_parallel: 3",
            "rag_mix.yaml.cluster.tensor_parallel: "
            "tensor_parallel 3 does not divide the 32 heads of llama-3.1-8b",
        ),
        (
            "name: ddr,",
            "name: ddr, link: nvmee,",
            "rag_mix.yaml.cache.tiers.0.link: no link is called 'nvmee'; did you mean 'nvme'?",
        ),
        (
            "file: data/requests.jsonl",
            "file: data/requests.jsonl, generator: chat",
            "rag_mix.yaml.workload.sources.0: a source needs either 'file' or 'generator', and not both",
        ),
        (
            "    - {name: rag, file: data/requests.jsonl}",
            "    []",
            "rag_mix.yaml.workload.sources: the list is empty; give at least one entry",
        ),
        (
            "    - {name: rag,",
            "    - {file: data/requests.jsonl, share: 1}\n    - {name: rag,",
            "rag_mix.yaml.workload: give 'share' to all sources or to none",
        ),
        (
            "    - {name: rag,",
            "    - {name: rag, generator: chat}\n    - {name: rag,",
            "rag_mix.yaml.workload: two sources are called 'rag'; give each a 'name'",
        ),
        (
            "duration: 1.5 h",
            "duration: soon",
            "rag_mix.yaml.workload.duration: expected a number and a unit such as '1 s', found 'soon'",
        ),
        (
            "seed: 1",
            "seed: 1\nname: a/b",
            "rag_mix.yaml.name: 'a/b' cannot be the name of a folder; leave out '/' and a leading '.'",
        ),
        ("cluster: {", "cluster: 3 #", "rag_mix.yaml.cluster: expected keys and values, found 3"),
        ("seed: 1", "seed: 1\nseed: 2", "{path}, line 2: bad YAML: the key 'seed' is given twice"),
    ],
)
def test_mistakes_in_the_file(rag_mix: Path, old: str, new: str, line: str) -> None:
    assert line_of(change(rag_mix, old, new)) == line.replace("{path}", str(rag_mix))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("cluster.replcas=4", "--set cluster.replcas: unknown key; did you mean 'replicas'?"),
        ("cluster.replicas=four", "--set cluster.replicas: expected a whole number, found 'four'"),
        (
            "cache.tiers.0.capacity=64",
            "--set cache.tiers.0.capacity: 64 has no unit; write '64 GB' or '64 GiB'",
        ),
        ("replicas", "--set replicas: expected key=value, such as cluster.replicas=4"),
        (
            "cache.tiers.dsk.capacity=1 GB",
            "--set cache.tiers.dsk.capacity: 'cache.tiers' has no entry 'dsk'; did you mean 'disk'?",
        ),
        (
            "cache.tiers.2.capacity=1 GB",
            "--set cache.tiers.2.capacity: 'cache.tiers' has no entry '2'; known: 0, 1, ddr, disk",
        ),
        ("seed.x=1", "--set seed.x: 'seed' is 1 and has no keys; set 'seed' itself"),
        ("description=[", "--set description: cannot read '[' as YAML; quote it"),
        (
            "engine.max_model_len=1000000",
            "--set engine.max_model_len: 1,000,000 tokens are more than the 131,072 the model was made for",
        ),
        (
            "engine.gpu_memory_utilization=1.2",
            "--set engine.gpu_memory_utilization: must be at most 1.0, found 1.2",
        ),
        (
            "timings.profile=a100-80gb-sxm-vllm-0.14.0",
            "--set timings.profile: a100-80gb-sxm-vllm-0.14.0 has the timings of a100-80gb-sxm, and cluster.gpu is "
            "h100-sxm; take a profile of that GPU, or leave timings.profile out",
        ),
        ("timings.strict_calibration=1", "--set timings.strict_calibration: expected true or false, found 1"),
    ],
)
def test_mistakes_on_the_command_line(rag_mix: Path, override: str, line: str) -> None:
    assert line_of(rag_mix, override) == line


def test_overrides(rag_mix: Path) -> None:
    scenario = load_scenario(
        rag_mix,
        [
            "cluster.replicas=4",
            "cache.tiers.0.capacity=32 GB",
            "cache.tiers.disk.capacity=2 TB",
            "engine.max_num_seqs=64",
            "cache.options.depth=3",
            "workload.requests_per_s=null",
        ],
    )
    assert scenario.cluster.replicas == 4
    assert [tier.capacity for tier in scenario.cache.tiers] == [32 * 10**9, 2 * 10**12]
    assert scenario.engine.max_num_seqs == 64
    assert scenario.cache.options == {"depth": 3}
    assert scenario.workload.requests_per_s is None


def test_missing_files(rag_mix: Path, tmp_path: Path) -> None:
    assert line_of(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"
    assert line_of(rag_mix, "workload.sources.0.file=no.jsonl") == (
        f"--set workload.sources.0.file: no such file: {tmp_path / 'no.jsonl'}"
    )
    assert line_of(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_bad_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("seed: 1\ncluster: {replicas: 2\nworkload: 3\n")
    assert line_of(path).startswith(f"{path}, line 3: bad YAML: ")
    path.write_text("")
    assert line_of(path) == f"{path}: expected keys and values, found nothing"
    path.write_text("- 1\n")
    assert line_of(path) == f"{path}: expected keys and values, found [1]"


def test_all_problems_are_noted_after_the_first(rag_mix: Path) -> None:
    with pytest.raises(ScenarioError) as error:
        load_scenario(rag_mix, ["cluster.replicas=0", "cache.evicton=lru"])
    assert str(error.value) == "--set cache.evicton: unknown key; did you mean 'eviction'?"
    assert error.value.__notes__ == ["--set cluster.replicas: must be at least 1, found 0"]


def test_a_misspelt_key_is_one_problem_and_not_also_a_missing_one(rag_mix: Path) -> None:
    change(rag_mix, "capacity: 64 GB", "capcity: 64 GB")
    with pytest.raises(ScenarioError) as error:
        load_scenario(rag_mix)
    assert str(error.value) == "rag_mix.yaml.cache.tiers.0.capcity: unknown key; did you mean 'capacity'?"
    assert not hasattr(error.value, "__notes__")


def test_a_scenario_without_a_file() -> None:
    scenario = parse_scenario({"workload": {"sources": [{"generator": "chat"}]}})
    assert scenario.name == "scenario"
    assert scenario.workload.sources[0].resolved_name == "chat"


def test_a_path_after_set_may_lie_in_the_current_folder(
    rag_mix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("saved.bin").write_bytes(b"")
    assert (
        load_scenario(rag_mix, ["cache.warm_start=saved.bin"]).path("saved.bin") == Path.cwd() / "saved.bin"
    )
    assert "no such file" in line_of(rag_mix, "cache.warm_start=other.bin")
