"""The height of every image divided among devices too: a model that computes a device's rows inside shard_map.

    the batch         along the mesh axis "devices"     whole images, on each of the devices that share them
    the model         along "devices" and "rows"        a device's rows of a device's images, with halos (halo.py)
    its parameters    whole on every device, or gathered from where FSDP divides them

Augmentation moves whole images, so each of the devices that share an image makes it, and takes its rows; from there on
what a layer keeps for the backward pass is divided. Normalisations take their statistics over all of the batch.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.train.sharding import AXIS, ROWS, Layout


def divided(model: types.ModuleType, layout: Layout, image_shape: tuple[int, ...], width: float) -> types.ModuleType:
    """The model as the steps of a layout run it: itself, where no height is divided.

    Its `apply` is of whole images, `apply_rows` of a device's rows, inside a shard_map.

    Raises:
      ValueError: the devices cannot share the rows of some layer evenly.
    """
    if layout.spatial == 1:
        return model
    apply_rows = functools.partial(model.apply, axis_name=(AXIS, ROWS), rows=ROWS)
    apply = functools.partial(_apply, apply_rows, layout)
    try:
        params, state = jax.eval_shape(lambda: model.init(jax.random.key(0), image_shape, 2, width=width))
        images = jax.ShapeDtypeStruct((layout.rows(1), *image_shape), jnp.float32)
        jax.eval_shape(functools.partial(apply, train=True), params, state, images)
    except ValueError as error:
        raise ValueError(f"spatial={layout.spatial}: {error}") from error
    found = types.ModuleType(model.__name__)
    vars(found).update(vars(model) | {"apply": apply, "apply_rows": apply_rows})
    return found


def _apply(
    apply_rows: Callable[..., tuple[jax.Array, Any]],
    layout: Layout,
    params: Any,
    state: Any,
    images: jax.Array,
    *,
    train: bool,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, Any]:
    """As the model's own apply."""
    mesh, height = layout.mesh, images.shape[1]
    assert mesh is not None
    if height % layout.spatial:
        raise ValueError(f"must divide the {height} rows of an image")
    part = functools.partial(apply_rows, train=train, dtype=dtype)
    whole, batch = PartitionSpec(), PartitionSpec(AXIS)
    images = jax.lax.with_sharding_constraint(images, NamedSharding(mesh, batch))
    mapped = jax.shard_map(
        part, mesh=mesh, in_specs=(whole, whole, PartitionSpec(AXIS, ROWS)), out_specs=(batch, whole)
    )
    return mapped(params, state, images)
