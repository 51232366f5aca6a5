"""One step of training: a pure function from a state and a batch to the next state and what was measured.

    step(state, batch) -> (state, metrics)

    images -> normalise -> augment -> model -> loss -> gradients -> clip -> optimizer -> parameters -> average

The batch is {"images": uint8 (n, height, width, channels), "labels": int32 (n,), "mirror": bool (n,)}. All that is
random comes from the state's key and step. Who derives the layers is decided here and nowhere else: `rules`
"automatic" is jconv.automatic of the loss.

A step whose loss or gradient is not finite changes nothing and marks the state as failed, and no later step changes
it: a caller may look one step late and still finds the parameters that led there (nonfinite.py then says which
layer).

Sources: Zhang, Lucas, Hinton, Ba 2019, Lookahead Optimizer (with the decay of Jordan 2024, arXiv:2404.00498); Szegedy
et al. 2016, Rethinking the Inception Architecture (label smoothing); Chen et al. 2016, Training Deep Nets with
Sublinear Memory Cost.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec

import jconv
from experiments.train import data
from experiments.train.settings import Settings
from experiments.train.sharding import AXIS, ONE_DEVICE, ROWS, Layout

LOOKAHEAD_STEPS = 5
LOOKAHEAD_DECAY = 0.95**LOOKAHEAD_STEPS


class State(NamedTuple):
    """All that changes from step to step; every leaf is an array."""

    step: jax.Array  # steps done
    key: jax.Array  # the seed's, as uint32
    params: dict[str, Any]
    state: dict[str, Any]  # the model's
    moments: Any  # the optimizer's
    average: dict[str, Any]  # {"params", "state"}, or empty
    failed: jax.Array  # a step was not finite

    @property
    def evaluated(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameters and model state that are evaluated: the average, where there is one."""
        return (self.average["params"], self.average["state"]) if self.average else (self.params, self.state)


Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


def path_of(path: Any) -> str:
    """A leaf's path in a tree of dictionaries, "stage0/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


# The optimizer.


def schedule(settings: Settings, steps: int) -> Callable[[Any], Any]:
    """The learning rate of each of `steps` steps."""
    peak, rise = settings.learning_rate, round(settings.warmup * steps)
    first, last = settings.first_rate * peak, settings.last_rate * peak
    match settings.schedule:
        case "triangular":
            return optax.join_schedules(
                [optax.linear_schedule(first, peak, rise), optax.linear_schedule(peak, last, max(1, steps - rise))],
                [rise],
            )
        case "one_cycle":
            up = lambda step: first + (peak - first) * (1 - jnp.cos(jnp.pi * step / max(1, rise))) / 2
            return optax.join_schedules([up, _cosine(peak, last, steps - rise)], [rise])
        case "cosine":
            return optax.join_schedules(
                [optax.linear_schedule(first, peak, rise), _cosine(peak, last, steps - rise)], [rise]
            )
        case _:
            return optax.join_schedules(
                [optax.linear_schedule(first, peak, rise), optax.constant_schedule(peak)], [rise]
            )


def _cosine(peak: float, last: float, steps: int) -> Callable[[Any], Any]:
    return optax.cosine_decay_schedule(peak, max(1, steps), last / peak)


def decayed(params: Any) -> Any:
    """The weight decay mask: kernels are decayed, biases, scales and normalisations are not."""
    return jax.tree.map(lambda each: each.ndim > 1, params)


def norm_biases(params: Any) -> Any:
    """The mask of normalisations' biases, by their layers' names."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "norm" in path_of(path) and path_of(path).endswith("bias"), params
    )


def optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """Clipping, the optimizer with its weight decay, and the learning rate's schedule."""
    rate, decay = schedule(settings, steps), settings.weight_decay
    match settings.optimizer:
        case "sgd":
            chosen = optax.chain(
                optax.add_decayed_weights(decay, decayed),
                optax.sgd(rate, settings.momentum or None, nesterov=settings.momentum > 0),
            )
        case "adamw":
            chosen = optax.adamw(rate, weight_decay=decay, mask=decayed)
        case "lion":
            chosen = optax.lion(rate, weight_decay=decay, mask=decayed)
        case _:
            chosen = optax.contrib.muon(
                rate, weight_decay=decay, weight_decay_mask=decayed, muon_weight_dimension_numbers=_matrices
            )
    parts = [optax.clip_by_global_norm(settings.clip)] if settings.clip else []
    parts.append(chosen)
    if settings.bias_rate != 1.0:
        parts.append(optax.masked(optax.scale(settings.bias_rate), norm_biases))
    return optax.chain(*parts)


def _matrices(params: Any) -> Any:
    """How muon sees each kernel as a matrix of inputs times outputs; None: by adam, as every vector."""
    matrix = lambda each: optax.contrib.MuonDimensionNumbers(tuple(range(each.ndim - 1)), each.ndim - 1)
    return jax.tree.map(lambda each: matrix(each) if each.ndim > 1 else None, params)


# The loss.


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Bytes to numbers of mean 0 and variance 1 over the training images, a channel."""
    return (images.astype(jnp.float32) / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def mirrored(images: jax.Array, mirror: jax.Array) -> jax.Array:
    """Images with left and right changed where `mirror` says so."""
    return jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def make_loss(
    settings: Settings, model: types.ModuleType, axes: tuple[str, ...] = ()
) -> Callable[..., tuple[jax.Array, Any]]:
    """loss(params, state, images, labels) -> (mean cross-entropy, (state, share of images right)).

    With `axes` of shard_map, the images are a device's, and so is the loss; normalisation is over all. Where ROWS is
    one of them a device has some rows of its images, and the loss is that of the devices that share them.
    """
    apply = model.apply
    if axes:
        apply = model.apply_rows if ROWS in axes else functools.partial(apply, axis_name=AXIS)

    def loss(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = apply(params, state, images, train=True, dtype=jnp.dtype(settings.dtype))
        with jax.named_scope("loss"):
            wanted = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), settings.label_smoothing)
            value = optax.softmax_cross_entropy(logits, wanted).mean()
        right = jnp.mean(logits.argmax(-1) == labels)
        # Devices that share images have the same logits, each of its own copy of the last layers' parameters.
        value, right = lax.pmean((value, right), ROWS) if ROWS in axes else (value, right)
        return value, (state, right)

    if settings.remat:  # keep what stands between blocks, compute what is inside them again
        loss = jax.checkpoint(loss, policy=jax.checkpoint_policies.save_only_these_names("block"))  # pyright: ignore
    return loss


def by_rules(loss: Callable[..., Any], rules: str) -> Callable[..., Any]:
    """The loss with jconv's rules, or with jax's own derivatives in their place."""
    return jconv.automatic(loss) if rules == "automatic" else loss


# The step.


def init(settings: Settings, model: types.ModuleType, params: Any, state: Any, steps: int) -> State:
    """The state before the first step."""
    del model
    copy = lambda tree: jax.tree.map(jnp.array, tree)  # no two leaves may share a buffer: a step is given them all
    average = {} if settings.average == "none" else copy({"params": params, "state": state})
    key = jax.random.key_data(jax.random.key(settings.seed))
    moments = optimizer(settings, steps).init(params)
    return State(jnp.int32(0), key, copy(params), copy(state), copy(moments), average, jnp.bool(False))


def prepare(settings: Settings, state: State, batch: Batch, mean: Any, std: Any) -> tuple[jax.Array, jax.Array]:
    """The normalised and augmented images of a batch, and its labels: what the loss is computed of."""
    images = mirrored(normalise(batch["images"], mean, std), batch["mirror"])
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    flip = settings.flip == "random"
    images = data.augment(key, images, flip=flip, crop=settings.crop, cutout=settings.cutout)
    return images, batch["labels"]


def make_gradients(
    settings: Settings, model: types.ModuleType, rules: str, layout: Layout = ONE_DEVICE
) -> Callable[..., Any]:
    """gradients(params, state, images, labels) -> (loss, state, accuracy, gradients), accumulated if so set.

    On several devices each adds up the gradients of its own parts, and the sums are added over the devices once.
    """
    axes = layout.mesh.axis_names if settings.accumulate > 1 and layout.mesh is not None else ()
    own = lambda tree, *axes: lax.pcast(tree, axes, to="varying") if axes else tree
    graded = jax.value_and_grad(by_rules(make_loss(settings, model, axes), rules), has_aux=True)

    def gradients(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, Any, Any]:
        if settings.accumulate == 1:
            (loss, (state, accuracy)), grads = graded(params, state, images, labels)
            return loss, state, accuracy, grads
        # Every so-manieth image is of one part, so that devices that share the batch share every part.
        split = lambda x: x.reshape(-1, settings.accumulate, *x.shape[1:]).swapaxes(0, 1)
        params = own(params, *axes)  # else every part's gradients would be added up over the devices

        def part(carry: Any, some: Any) -> tuple[Any, None]:
            state, *sums = carry
            (loss, (state, accuracy)), grads = graded(params, state, *some)
            return (state, *jax.tree.map(jnp.add, tuple(sums), (loss, accuracy, grads))), None

        zeros = own((jnp.float32(0), jnp.float32(0)), *axes[:1])
        first = (state, *zeros, jax.tree.map(jnp.zeros_like, params))
        (state, *means, grads), _ = lax.scan(part, first, (split(images), split(labels)))
        parts = settings.accumulate
        if axes:
            means, parts = lax.pmean(means, AXIS), parts * layout.count // layout.spatial
            grads = lax.psum(grads, axes)
        loss, accuracy = (total / settings.accumulate for total in means)
        return loss, state, accuracy, jax.tree.map(lambda total: total / parts, grads)

    if not axes:
        return gradients
    whole, labels, images = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(*axes)
    return jax.shard_map(gradients, mesh=layout.mesh, in_specs=(whole, whole, images, labels), out_specs=whole)


def make_step(
    settings: Settings, model: types.ModuleType, rules: str, steps: int, mean: Any, std: Any,
    layout: Layout = ONE_DEVICE,
) -> Callable[[State, Batch], tuple[State, Metrics]]:  # fmt: skip
    """The step, not yet jitted: jit it as `layout` does, with its first argument donated."""
    gradients, update, rate = (
        make_gradients(settings, model, rules, layout),
        optimizer(settings, steps).update,
        schedule(settings, steps),
    )

    def step(old: State, batch: Batch) -> tuple[State, Metrics]:
        images, labels = prepare(settings, old, batch, mean, std)
        loss, state, accuracy, grads = gradients(layout.gathered(old.params), old.state, images, labels)
        updates, moments = update(grads, old.moments, old.params)
        params: Any = optax.apply_updates(old.params, updates)
        new = averaged(
            settings, old, State(old.step + 1, old.key, params, state, moments, old.average, old.failed), steps
        )
        fine = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads)) & ~old.failed
        new = jax.tree.map(functools.partial(jnp.where, fine), new, old)._replace(failed=~fine)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": jnp.asarray(rate(old.step), jnp.float32),
            "fine": fine,
        }
        return new, metrics

    return step


def averaged(settings: Settings, old: State, new: State, steps: int) -> State:
    """`new` with its average taken one step on.

    ema:        average = d * average + (1 - d) * new, with d smaller in the first steps
    lookahead:  every five steps the same, with d = 0.95^5 * (step / steps)^3, and the parameters go back to the average
    """
    if settings.average == "none":
        return new
    latest = {"params": new.params, "state": new.state}
    mix = lambda decay: jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old.average, latest)
    if settings.average == "ema":
        step = new.step.astype(jnp.float32)
        return new._replace(average=mix(jnp.minimum(settings.average_decay, (1 + step) / (10 + step))))
    share = (new.step / steps).astype(jnp.float32)
    ended = new.step >= steps  # the last parameters are the average
    now = (new.step % LOOKAHEAD_STEPS == 0) & ~ended
    moved = mix(LOOKAHEAD_DECAY * share**3)
    average = jax.tree.map(functools.partial(jnp.where, now), moved, old.average)
    back = jax.tree.map(functools.partial(jnp.where, now | ended), average, latest)
    return new._replace(params=back["params"], state=back["state"], average=average)


# Evaluation.


def make_logits(
    settings: Settings, model: types.ModuleType, rules: str, mean: Any, std: Any, views: int
) -> Callable[..., jax.Array]:
    """logits(params, state, images) of bytes, averaged over the views of each image.

    2 views: the image and its mirror image. 6: half the weight on these, half on the same moved by a pixel up and
    left, and down and right, the border reflected.
    """

    def logits(params: Any, state: Any, images: jax.Array) -> jax.Array:
        model_logits = by_rules(
            lambda x: model.apply(params, state, x, train=False, dtype=jnp.dtype(settings.dtype))[0], rules
        )
        x = normalise(images, mean, std)
        if views == 1:
            return model_logits(x)
        both = lambda x: (model_logits(x) + model_logits(x[:, :, ::-1])) / 2
        if views == 2:
            return both(x)
        padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
        return both(x) / 2 + (both(padded[:, 2:, 2:]) + both(padded[:, :-2, :-2])) / 4

    return logits
