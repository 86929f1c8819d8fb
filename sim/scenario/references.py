"""Third pass over a scenario: the things it names exist and go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from kvsim.errors import KvsimError
from kvsim.scenario.link import MeasuredLink
from kvsim.scenario.pools import KvTransfer
from kvsim.scenario.schema import Scenario

Check = tuple[str, Callable[[], object]]


def check_references(scenario: Scenario) -> tuple[str, str] | None:
    """(key, what is wrong) of the first reference that does not hold, None if all do.

    Managers, routers and other plug-ins are looked up when the simulation is built, not here.
    """
    for key, check in _checks(scenario):
        try:
            check()
        except KvsimError as error:
            return key, str(error)
    return None


def _checks(scenario: Scenario) -> Iterator[Check]:
    from kvsim.hardware.load import load_gpu, load_link
    from kvsim.scenario.build import build_model, measured_link

    yield "model", lambda: build_model(scenario)
    yield "cluster.gpu", lambda: load_gpu(scenario.profile_path(scenario.cluster.gpu))
    yield from _parallel_checks("cluster", scenario)
    yield "engine.max_model_len", lambda: _model_len(scenario)
    yield "timings.profile", lambda: _timings(scenario, "cluster.gpu", "timings.profile")
    yield from _pool_checks(scenario)
    for i, tier in enumerate(scenario.cache.tiers):
        if isinstance(tier.link, str):
            yield f"cache.tiers.{i}.link", lambda name=tier.link: load_link(name)  # type: ignore[misc]
        if isinstance(tier.link, MeasuredLink):
            yield f"cache.tiers.{i}.link", lambda link=tier.link: measured_link(scenario, link)  # type: ignore[misc]
    if scenario.cache.warm_start is not None:
        yield "cache.warm_start", lambda: _file(scenario, scenario.cache.warm_start or "")
    for i, source in enumerate(scenario.workload.sources):
        if source.file is not None:
            yield f"workload.sources.{i}.file", lambda name=source.file: _file(scenario, name)  # type: ignore[misc]
        if isinstance(source.options.get("trace"), str):
            name = source.options["trace"]
            yield f"workload.sources.{i}.options.trace", lambda name=name: _file(scenario, name)  # type: ignore[misc]


def _pool_checks(scenario: Scenario) -> Iterator[Check]:
    from kvsim.hardware.load import load_gpu
    from kvsim.scenario.of_pool import pool_scenarios

    if (transfer := scenario.cluster.kv_transfer) is not None:
        yield "cluster.kv_transfer.link", partial(_network, transfer)
    for i, (_, alone) in enumerate(pool_scenarios(scenario) if scenario.cluster.pools else ()):
        key, gpu = f"cluster.pools.{i}", alone.profile_path(alone.cluster.gpu)
        yield f"{key}.gpu", partial(load_gpu, gpu)
        yield from _parallel_checks(key, alone)
        yield f"{key}.timings", partial(_timings, alone, "the pool's GPU", "timings")


def _parallel_checks(key: str, scenario: Scenario) -> Iterator[Check]:
    """One key after the other, so that the message names the one that is wrong."""
    from kvsim.model.parallel import Parallel, check_parallel
    from kvsim.scenario.build import build_model, build_parallel

    def check(parallel: Parallel) -> None:
        check_parallel(build_model(scenario), parallel)

    whole = build_parallel(scenario)
    yield f"{key}.tensor_parallel", partial(check, Parallel(whole.tensor))
    yield f"{key}.pipeline_parallel", partial(check, Parallel(whole.tensor, whole.pipeline))
    yield f"{key}.data_parallel", partial(check, Parallel(whole.tensor, whole.pipeline, whole.data))
    yield f"{key}.expert_parallel", partial(check, whole)


def _model_len(scenario: Scenario) -> None:
    from kvsim.scenario.build import build_model

    wanted, longest = scenario.engine.max_model_len, build_model(scenario).max_model_len
    if wanted is not None and wanted > longest:
        raise KvsimError(f"{wanted:,} tokens are more than the {longest:,} the model was made for")


def _timings(scenario: Scenario, gpu_key: str, key: str) -> None:
    from kvsim.cost.profile import load_profile
    from kvsim.hardware.load import load_gpu

    if scenario.timings.profile is None:
        return
    profile = load_profile(scenario.profile_path(scenario.timings.profile))
    gpu = load_gpu(scenario.profile_path(scenario.cluster.gpu)).name
    if profile.gpu != gpu:
        raise KvsimError(
            f"{profile.name} has the timings of {profile.gpu}, and {gpu_key} is {gpu}; "
            f"take a profile of that GPU, or leave {key} out"
        )


def _network(transfer: KvTransfer) -> None:
    from kvsim.scenario.build import build_network_link

    link = build_network_link(transfer)
    if not (link.read_bytes_per_s > 0 and link.write_bytes_per_s > 0):
        raise KvsimError("a rate of 0 B/s never ends a transfer; give read and write")


def _file(scenario: Scenario, name: str) -> None:
    path = scenario.path(name)
    if not path.is_file():
        raise KvsimError(f"no such file: {path}")
