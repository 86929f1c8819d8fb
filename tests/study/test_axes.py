"""What --set means in a study."""

import pytest

from kvsim.errors import ScenarioError
from kvsim.study.axes import Axis, parse_axes

VARIES = "cluster.replicas=1,2"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1..4", ("1", "2", "3", "4")),
        ("1..16x4", ("1", "6", "11", "16")),
        ("0.1..0.5x5", ("0.1", "0.2", "0.3", "0.4", "0.5")),
        ("0..512 GB x3", ("0 GB", "256 GB", "512 GB")),
        ("1..1000x4 log", ("1", "10", "100", "1000")),
        ("8..128 GB x5 log", ("8 GB", "16 GB", "32 GB", "64 GB", "128 GB")),
        ("8 GB..16 GBx2", ("8 GB", "16 GB")),
        ("64 GB, 128 GB", ("64 GB", "128 GB")),
        ("lru,{policy: ttl, seconds: 300}", ("lru", "{policy: ttl, seconds: 300}")),
        ("[],[{name: a, capacity: 1 GB}, {name: b}]", ("[]", "[{name: a, capacity: 1 GB}, {name: b}]")),
        ("'a,b',\"c]\"", ("'a,b'", '"c]"')),
        ("../a.yaml,b.yaml", ("../a.yaml", "b.yaml")),
        ("one", ("one",)),
    ],
)
def test_values_of_an_axis(text: str, values: tuple[str, ...]) -> None:
    assert parse_axes([f"some.key={text}", VARIES])[0] == Axis("some.key", values)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ([], "the grid is empty: no --set has more than one value"),
        (["cluster.replicas=2"], "the grid is empty: no --set has more than one value"),
        (
            ["cluster.replicas=4..1"],
            "--set cluster.replicas: 4..1 is an empty range; the larger end comes last",
        ),
        (["cluster.replicas="], "--set cluster.replicas: no value; give a range"),
        (["cluster.replicas=1,,2"], "--set cluster.replicas: an empty value in '1,,2'"),
        (["cluster.replicas=1,1"], "--set cluster.replicas: 1 is given twice"),
        (["cluster.replicas"], "--set cluster.replicas: expected KEY=A..B or KEY=V1,V2"),
        ([VARIES, "cluster.replicas=3"], "--set cluster.replicas: given twice"),
        (["a=0.1..0.9"], "--set a: 0.1..0.9: say how many values, such as 0.1..0.9x5"),
        (["a=1 GB..4 GB"], "--set a: 1 GB..4 GB: say how many values"),
        (["a=1..9 log"], "--set a: 1..9 log: say how many values, such as 1..9x5 log"),
        (["a=0..9x3 log"], "--set a: 0..9x3 log: 0 has no logarithm; begin above 0"),
        (["a=1 MB..4 GB x4"], "--set a: 1 MB..4 GB x4: both ends of a range need the same unit"),
        (["a=1..4x1"], "--set a: 1..4x1: 1 values; give 2 to 100,000"),
        (["a=1..1000", "b=1..1000"], "the grid has 1,000,000 points; give fewer values"),
        (["a=0..1.2.3x4"], "--set a: 0..1.2.3x4: the ends of a range are numbers"),
    ],
)
def test_what_is_no_grid(settings: list[str], line: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_axes(settings)
    assert str(error.value).startswith(line)
