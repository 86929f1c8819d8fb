"""How the GPUs of one replica share a model: tensor, pipeline, data and expert parallelism, as vLLM has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvsim.errors import ScenarioError
from kvsim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Parallel:
    """``tensor`` GPUs hold parts of every matrix, ``pipeline`` groups of them some layers each; ``data`` such groups have
    requests of their own and share the experts. Experts are in ``expert`` groups; within one each is cut."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1

    @property
    def num_gpus(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def shares(self) -> int:
        """Parts into which a step's requests are divided: micro-batches of a pipeline, groups with their own requests."""
        return self.pipeline * self.data

    @property
    def moe_tensor(self) -> int:
        """GPUs that each expert is cut over."""
        return self.tensor * self.data // self.expert


def check_parallel(model: ModelSpec, parallel: Parallel) -> None:
    """The model can be shared so.

    Raises:
        ScenarioError: one line that names the key.
    """
    check_tensor_parallel(model, parallel.tensor)
    if parallel.pipeline > 1 and model.state is not None:
        raise ScenarioError(
            f"pipeline_parallel {parallel.pipeline}: layers of several kinds ({model.name}) cannot be dealt out; set it to 1"
        )
    if parallel.pipeline > model.num_layers:
        raise ScenarioError(
            f"pipeline_parallel {parallel.pipeline} is more than the {model.num_layers} layers of {model.name}"
        )
    if model.moe is None:
        for name, value in (("expert_parallel", parallel.expert), ("data_parallel", parallel.data)):
            if value > 1:
                hint = "set it to 1" if name == "expert_parallel" else "that is cluster.replicas; set it to 1"
                raise ScenarioError(f"{name} {value}: {model.name} has no experts; {hint}")
        return
    group = parallel.tensor * parallel.data
    if group % parallel.expert:
        raise ScenarioError(
            f"expert_parallel {parallel.expert} does not divide the {group} GPUs of tensor_parallel x data_parallel"
        )
    if model.moe.num_experts % parallel.expert:
        raise ScenarioError(
            f"expert_parallel {parallel.expert} does not divide the {model.moe.num_experts} experts of {model.name}"
        )


def check_tensor_parallel(model: ModelSpec, tensor_parallel: int) -> None:
    """Heads split evenly; KV heads split evenly or are copied evenly."""
    if model.num_heads % tensor_parallel:
        raise ScenarioError(
            f"tensor_parallel {tensor_parallel} does not divide the {model.num_heads} heads of {model.name}"
        )
    if model.num_kv_heads % tensor_parallel and tensor_parallel % model.num_kv_heads:
        raise ScenarioError(
            f"tensor_parallel {tensor_parallel} neither divides nor is a multiple of the "
            f"{model.num_kv_heads} KV heads of {model.name}"
        )


def stage_layers(num_layers: int, stages: int) -> Sequence[range]:
    """The layers of each stage of a pipeline, as vLLM deals them out: evenly; what is left goes to the stages from the
    last but one forward, since the last one has the LM head."""
    sizes = [num_layers // stages] * stages
    for i in range(num_layers % stages):
        sizes[-2 - i] += 1
    starts = [sum(sizes[:i]) for i in range(stages)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
