"""From "here is my rule" to "here is why it is wrong": a walk through jconv.compare, to be read from top to bottom.

The rule is of a convolution along one axis, y[p] = sum over t of x[p + t] w[t]. Its input gradient is the full
convolution of g with w turned by 180 degrees, dx[a] = sum over t of g[a - t] w[t]; whoever forgets to turn w has a rule
that trains, for the kernel's own gradient is right and a kernel that is symmetric hides the slip.

Each step is a function that says what it is about to show, shows it, and returns it.
"""

import sys
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import typer

import jconv
from jconv.comparison import Comparison

Array = jax.Array


# 1. The function, and a first rule for it.


def correlate(x: Array, w: Array) -> Array:
    """y[p] = sum over t of x[p + t] w[t]: windows of x, times w."""
    places = x.shape[0] - w.shape[0] + 1
    return jnp.stack([x[p : p + w.shape[0]] for p in range(places)]) @ w


@jax.custom_vjp
def my_conv(x: Array, w: Array) -> Array:
    """The function with a rule of my own."""
    return correlate(x, w)


def my_conv_fwd(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    """Keeps both operands."""
    return correlate(x, w), (x, w)


def my_conv_bwd(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """dw is the valid cross-correlation of x with g, dx the full convolution of g with w. Is it?"""
    x, w = kept
    around = w.shape[0] - 1
    return correlate(jnp.pad(g, around), w), correlate(x, g)


my_conv.defvjp(my_conv_fwd, my_conv_bwd)


# 2. The same rule with the slip mended.


@jax.custom_vjp
def mended_conv(x: Array, w: Array) -> Array:
    """The function with the rule as it should be."""
    return correlate(x, w)


def mended_conv_bwd(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """dx is the full convolution of g with w turned by 180 degrees."""
    x, w = kept
    around = w.shape[0] - 1
    return correlate(jnp.pad(g, around), w[::-1]), correlate(x, g)


mended_conv.defvjp(my_conv_fwd, mended_conv_bwd)


def loss(x: Array, w: Array) -> Array:
    """What a model makes of it."""
    return jnp.sum(jnp.sin(my_conv(x, w)))


def mended_loss(x: Array, w: Array) -> Array:
    """The same over the mended rule."""
    return jnp.sum(jnp.sin(mended_conv(x, w)))


def arguments(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A signal of 12 elements, a kernel of 3."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=12).astype(np.float32), rng.normal(size=3).astype(np.float32)


# The walk.


def say(text: str) -> None:
    """A heading."""
    print(f"\n# {text}\n")


def it_seems_to_work() -> list[float]:
    """Gradient descent on the kernel: the loss falls, so who would doubt the rule?"""
    say("Here is my rule. Gradient descent on the kernel finds one that maps x to y, so it seems to work.")
    x, wanted = arguments()
    y, w = correlate(jnp.asarray(x), jnp.asarray(wanted)), jnp.zeros(3)
    error = jax.jit(jax.value_and_grad(lambda w: jnp.mean((my_conv(jnp.asarray(x), w) - y) ** 2)))
    errors = []
    for _ in range(200):
        value, gradient = error(w)
        errors.append(float(value))
        w = w - 0.1 * gradient
    print(f"mean squared error: {errors[0]:.3f} at first, {errors[-1]:.1e} after {len(errors)} steps")
    return errors


def it_is_wrong() -> Comparison:
    """One line says that it is not right, and which argument's gradient is not."""
    say("jconv.compare(loss, x, w) runs it by my rule and by jax's own derivative.")
    found = jconv.compare(loss, *arguments())
    print(found)
    return found


def where_it_is_wrong(found: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """The arrays are in the result: look at them, or let the simplest input speak."""
    say("The gradient of w is right, that of x is not. A single 1 in g writes w into dx, and shows how it lies there.")
    (bad,) = found.disagreements
    print(f"max |difference| is {bad.largest:.3g}, at x{list(bad.index)}")
    x, w = arguments()
    w = np.array([1, 2, 3], np.float32)
    g = np.zeros(10, np.float32)
    g[4] = 1
    mine = np.asarray(jax.vjp(my_conv, x, w)[1](g)[0])
    right = np.asarray(jax.vjp(jconv.automatic(my_conv), x, w)[1](g)[0])
    print(f"w           {w}\ng           {g}\ndx by me    {mine}\ndx by jax   {right}")
    print("\nMine is mirrored: the full convolution needs w turned by 180 degrees. Kernels that are symmetric hide it:")
    symmetric = jconv.compare(loss, x, np.array([1, 2, 1], np.float32), repeats=1)
    print(f"with w = [1, 2, 1]: {symmetric.verdict()}")
    return mine, right


def it_is_mended() -> Comparison:
    """The mended rule, as a test would hold it."""
    say(
        "With w[::-1] in my_conv_bwd, jconv.compare(...).assert_close() passes, and so does the derivative of the rule."
    )
    found = jconv.compare(mended_loss, *arguments(), jvp_of_grad=True)
    found.assert_close()
    print(found.verdict())
    return found


app = typer.Typer(add_completion=False, rich_markup_mode=None)

EXAMPLES = """\b
Examples:
  python -m experiments.compare_tour
  python -m experiments.compare_tour --html wrong.html
  python -m jconv compare experiments.compare_tour:loss --args experiments.compare_tour:arguments
"""


@app.command(epilog=EXAMPLES)
def tour(
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the comparison as a page.")] = None,
) -> None:
    """Walks from a hand-written rule that looks right to the reason why it is wrong."""
    if html is not None and not html.absolute().parent.is_dir():
        raise typer.BadParameter(f"{html} cannot be written; does its folder exist?")
    it_seems_to_work()
    found = it_is_wrong()
    where_it_is_wrong(found)
    it_is_mended()
    if html is not None:
        found.to_html(html)
        print(f"\nThe page: {html}")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; a wrong argument ends in one line and exit status 2."""
    try:
        app(arguments, prog_name="python -m experiments.compare_tour", standalone_mode=False)
    except typer.TyperException as error:
        print(f"compare_tour: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:  # the user pressed Ctrl-C
        sys.exit(130)


if __name__ == "__main__":
    main()
