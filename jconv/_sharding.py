"""A product whose batch is split over devices is computed by each device for its own part of the batch.

Under jit with sharded arrays XLA divides a program among the devices by itself. Where an algorithm runs a loop over the
images, or over a batch of examples, it cannot: it gathers the whole batch on every device (openxla/xla#47945). So on
more than one device a program with a loop becomes an operation that tells XLA which axes are a batch
(jax.experimental.custom_partitioning), and that XLA replaces by the program for one device's part: each result stays
where its operands are, and a sum over the batch, a kernel gradient, is added up over the devices, once.

On one device, under shard_map, where a program sees its own part alone, in an export, and for programs without a loop,
which XLA divides well along any axis, nothing is different.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"  # of the mesh that a batch is split over
LOOPS = ("scan", "while")


@dataclasses.dataclass(frozen=True)
class Split:
    """An axis along which a primitive works on each entry alone: its number in each operand and in each result.

    None for an array without it; there may be more numbers than results. Where the one result is the sum over the axis,
    `partial` computes the sum over a part of it, of the type that such sums are added up in.
    """

    operands: tuple[int | None, ...]
    results: tuple[int | None, ...]
    partial: Callable[..., Any] | None = None


def has_loop(jaxpr: Any) -> bool:
    """Whether a program runs a loop, at any depth."""
    inner = getattr(jax.extend.core, "jaxprs_in_params", None) or jax.core.jaxprs_in_params  # there before jax 0.10
    return any(eqn.primitive.name in LOOPS or any(map(has_loop, inner(eqn.params))) for eqn in jaxpr.eqns)


def divided(lower: Callable[..., Any], results: Sequence[Any], splits: Sequence[Split]) -> Callable[..., Any]:
    """lower(*arrays), but that each device computes its part where the axis of one of `splits` is split over devices.

    Gives a list of `results`, which are shapes and dtypes. To be lowered where it is known for how many devices.
    """
    from jax.experimental.custom_partitioning import custom_partitioning  # here, since one device needs none of it

    from jconv import measured  # here, since _jax.py imports this module

    x64, matmul_precision = (jax.config.values[f"jax_{name}"] for name in ("enable_x64", "default_matmul_precision"))
    choice = measured.in_use()

    def partition(mesh: Mesh, operands: Any, result: Any) -> Any:
        del mesh  # that of the caller, if one is known at all; _division makes one of the batch alone
        mesh, split = _division(operands, splits)
        place = lambda array, dim: NamedSharding(mesh, _spec(array, dim))
        at = split or Split((None,) * len(operands), (None,) * len(results))

        def part(*arrays: Any) -> Any:
            # XLA calls from a thread of its own, where no context of the caller holds.
            with jax.enable_x64(x64), jax.default_matmul_precision(matmul_precision), measured.using(choice):
                if at.partial is None:
                    return jax.tree.leaves(lower(*arrays))
                return [jax.lax.psum(at.partial(*arrays), AXIS).astype(results[0].dtype)]

        return mesh, part, list(map(place, result, at.results)), tuple(map(place, operands, at.operands))

    def outline(*arrays: Any) -> list[Any]:
        del arrays  # what a call without arguments to divide would compute; nobody runs it
        return [jax.lax.full(aval.shape, 0, aval.dtype) for aval in results]

    call = custom_partitioning(outline)
    call.def_partition(
        partition, decode_shardings=False, sharding_rule=lambda mesh, given, got: _rule(splits, given, got)
    )
    return call


def _spec(array: Any, dim: int | None) -> PartitionSpec:
    return PartitionSpec(*(AXIS if i == dim else None for i in range(len(array.shape))))


def _division(operands: Sequence[Any], splits: Sequence[Split]) -> tuple[Mesh, Split | None]:
    """(mesh, split): the first of `splits` whose axis is split over devices, over the mesh axis AXIS of the mesh.

    The mesh has the devices in their order, so AXIS is the one in the middle of three: devices beside one another, and
    devices far apart, may hold copies. No split where there is none, or it is of another kind.
    """
    devices = operands[0].sharding._device_assignment
    for split in splits:
        for array, dim in zip(operands, split.operands, strict=True):
            if dim is None:
                continue
            try:
                indices = array.sharding.devices_indices_map(tuple(array.shape))
            except ValueError:  # parts of different sizes, which XLA fills up with anything
                continue
            first = np.array([indices[device][dim].start or 0 for device in devices])
            parts = len(set(first.tolist()))
            if parts == 1 or array.shape[dim] % parts:
                continue
            which = first // (array.shape[dim] // parts)
            beside = int(np.argmax(which != which[0]))  # devices in a row that hold the same part
            if np.array_equal(which, np.arange(len(devices)) // beside % parts):
                shape = (len(devices) // parts // beside, parts, beside)
                return Mesh(np.array(devices).reshape(shape), ("before", AXIS, "beside")), split
    return Mesh(np.array(devices), ("all",)), None


def _rule(splits: Sequence[Split], given: Sequence[Any], got: Sequence[Any]) -> str:
    """The splits as Shardy reads them: a name for each axis, the same one for axes that are split alike."""

    def names(side: str, number: int, rank: int) -> str:
        dims = {getattr(split, side)[number]: f"n{i}" for i, split in enumerate(splits)}
        return " ".join(dims.get(dim, f"{side[0]}{number}x{dim}") for dim in range(rank))

    left = [names("operands", i, len(v.shape)) for i, v in enumerate(given)]
    right = [names("results", i, len(v.shape)) for i, v in enumerate(got)]
    return f"{', '.join(left)} -> {', '.join(right)}"
