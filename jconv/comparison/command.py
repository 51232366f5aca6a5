"""`python -m jconv compare`, `python -m jconv explain` and `python -m jconv autotune`."""

import dataclasses
import difflib
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import jax
import typer

from jconv.autotuning import autotune
from jconv.comparison import layer as layers
from jconv.comparison.forms import first_line
from jconv.comparison.side_by_side import compare
from jconv.explanation import explain_layer

LAYER_HELP = """\b
A layer is typed as  OP SHAPE [-> OUT] kWINDOW [sSTRIDES] [pPADDING] [dDILATION] [gGROUPS] [bias] [DTYPE]
  OP        conv, conv_transpose, max_pool, avg_pool
  SHAPE     batch x space x channels, channels last: 8x56x56x64
  k, s, d   one number, or one a spatial axis: k3, k3x5
  p         p1, p1x2, low:high as in p2:0, or a name as in pSAME
  DTYPE     float32, bfloat16, float16
"""
COMPARE_EXAMPLES = f"""\b
Examples:
  python -m jconv compare --layer 'conv 8x56x56x64 -> 64 k3 s1 p1'
  python -m jconv compare --layer 'conv 8x28x28x128 -> 128 k3 p1 g128 bias' --html depthwise.html
  python -m jconv compare --layer 'max_pool 8x112x112x64 k3 s2 p1' --json pool.json
  python -m jconv compare mymodel:loss --args mymodel:example_arguments --jvp-of-grad

{LAYER_HELP}
\b
Exit status: 0 where the rules agree, 1 where they do not, 2 where nothing could be compared.
"""
EXPLAIN_EXAMPLES = f"""\b
Examples:
  python -m jconv explain 'conv 8x56x56x128 -> 128 k3 p1 g128'
  python -m jconv explain 'conv_transpose 1x28x28x1024 -> 512 k2 s2' --platform gpu

{LAYER_HELP}"""

AUTOTUNE_EXAMPLES = f"""\b
Examples:
  python -m jconv autotune mymodel:step --args mymodel:example_arguments --file tuning.json
  python -m jconv autotune --layer 'conv 8x28x28x128 -> 128 k3 p1' --file tuning.json

\b
A program puts the file to use before anything else:
  jconv.Tuning.load("tuning.json").use()

{LAYER_HELP}"""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Hand-written backward passes of convolutions and poolings, held against jax's own derivatives.",
)


class Refused(Exception):
    """What the user asked for cannot be done; the message is one line."""


def writable(path: pathlib.Path | None) -> pathlib.Path | None:
    """Checks before the comparison, not after it, that the file can be written."""
    if path is not None:
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder, not a file")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise typer.BadParameter(f"{path} cannot be written; does its folder exist?")
    return path


@app.command("compare", epilog=COMPARE_EXAMPLES)
def compare_command(
    target: Annotated[str | None, typer.Argument(metavar="MODULE:FUNCTION", help="What to compare.")] = None,
    layer: Annotated[str | None, typer.Option(metavar="LAYER", help="A layer typed by hand, instead.")] = None,
    args: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY", help="Called without arguments; gives FUNCTION's, in a tuple."),
    ] = None,
    html: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE", callback=writable, help="A page to read.")
    ] = None,
    json_file: Annotated[
        pathlib.Path | None, typer.Option("--json", metavar="FILE", callback=writable, help="All figures.")
    ] = None,
    jvp_of_grad: Annotated[bool, typer.Option("--jvp-of-grad", help="The derivative of the gradients too.")] = False,
    rtol: Annotated[
        float | None, typer.Option(min=0, help="Largest share to be apart; default: half the digits.")
    ] = None,
    atol: Annotated[float | None, typer.Option(min=0, help="How far apart beside that; default: rounding.")] = None,
    rule: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this custom_vjp function; may be repeated.")
    ] = None,
    float64: Annotated[bool, typer.Option(help="Ask float64 and finite differences who is right.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="How often each form is timed.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Draws all random numbers.")] = 0,
) -> int:
    """Runs a function by hand-written rules and by jax's own derivatives: values, gradients, time, memory."""
    _need("rich")
    if html is not None:
        _need("matplotlib")
    _one_of("compare", target, layer, args)
    if layer is not None:
        parsed = _layer(layer)
        fun, arguments, name = parsed.fun, parsed.arguments(seed), parsed.text
    else:
        fun, arguments, name = (
            _load("compare", target or ""),
            _arguments("compare", target or "", args),
            target or "",
        )
    try:
        found = compare(
            fun,
            *arguments,
            jvp_of_grad=jvp_of_grad,
            rtol=rtol,
            atol=atol,
            rules="all" if not rule else tuple(rule),
            float64=float64,
            repeats=repeats,
            seed=seed,
            name=name,
        )
    except Exception as error:
        raise _failed("compare", name, error) from error
    print(found)
    if html is not None:
        found.to_html(html)
    if json_file is not None:
        json_file.write_text(found.to_json() + "\n")
    if found.agrees:
        return 0
    for difference in found.disagreements:
        print(f"jconv: the rules disagree: {difference.place()}", file=sys.stderr)
    return 1


@app.command("explain", epilog=EXPLAIN_EXAMPLES)
def explain_command(
    layer: Annotated[str | None, typer.Argument(metavar="LAYER", help="A layer typed by hand.")] = None,
    layer_option: Annotated[str | None, typer.Option("--layer", metavar="LAYER", help="The same.")] = None,
    platform: Annotated[str | None, typer.Option(help="cpu, gpu or tpu; default: the one that jax runs on.")] = None,
) -> int:
    """Tells which algorithm computes each of the three products of a convolution, why, and which others could."""
    if (layer is None) == (layer_option is None):
        raise Refused("explain: give one layer, such as 'conv 8x56x56x64 -> 64 k3 s1 p1'; see --help")
    if platform not in (None, "cpu", "gpu", "tpu"):
        raise Refused(f"explain: --platform {platform!r} must be cpu, gpu or tpu")
    parsed = _layer(layer or layer_option or "")
    if parsed.op in layers.POOLS:
        raise Refused(f"explain: {parsed.op} is computed in one way, there is nothing to choose; give a convolution")
    print(dataclasses.replace(explain_layer(parsed.fun, *parsed.shapes, platform=platform), layer=parsed.text))
    return 0


@app.command("autotune", epilog=AUTOTUNE_EXAMPLES)
def autotune_command(
    target: Annotated[
        str | None, typer.Argument(metavar="MODULE:FUNCTION", help="What to measure, such as a training step.")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="LAYER", help="A convolution typed by hand, instead.")] = None,
    args: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY", help="Called without arguments; gives FUNCTION's, in a tuple."),
    ] = None,
    file: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="FILE", callback=writable, help="Where to keep it; what it knows is not measured again."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each algorithm is timed.")] = 10,
    seconds: Annotated[
        float, typer.Option(min=0.001, help="No further algorithm is tried for a product after this time.")
    ] = 60.0,
) -> int:
    """Times every algorithm of each convolution in a function on this machine, and keeps the fastest in a file."""
    _need("rich")
    from rich.console import Console
    from rich.progress import Progress

    _one_of("autotune", target, layer, args)
    if layer is not None:
        fun, arguments = _step(_layer(layer))
    else:
        fun, arguments = _load("autotune", target or ""), _arguments("autotune", target or "", args)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        show = lambda done, total, text: bar.update(task, completed=done, total=total, description=text)
        try:
            found = autotune(fun, *arguments, repeats=repeats, seconds=seconds, file=file, progress=show)
        except Exception as error:
            raise _failed("autotune", target or layer or "", error) from error
    print(found)
    return 0


def _step(layer: layers.Layer) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A forward and a backward pass of a convolution, and its arguments."""
    if layer.op in layers.POOLS:
        raise Refused(f"autotune: {layer.op} is computed in one way, there is nothing to measure; give a convolution")

    def step(g: Any, *arrays: Any) -> Any:
        y, back = jax.vjp(layer.fun, *arrays)
        return y, back(g)

    return step, (jax.eval_shape(layer.fun, *layer.shapes), *layer.shapes)


def _one_of(command: str, target: str | None, layer: str | None, args: str | None) -> None:
    if (target is None) == (layer is None):
        raise Refused(f"{command}: give either MODULE:FUNCTION or --layer; see --help")
    if layer is not None and args is not None:
        raise Refused(f"{command}: --args belongs to MODULE:FUNCTION; a layer brings its own arguments")


def _failed(command: str, name: str, error: Exception) -> Refused:
    """The one line for what the function of that name raised, or what was wrong with it."""
    text = first_line(error)
    own = isinstance(error, TypeError | ValueError) and text.startswith(f"{command}: ")
    return Refused(text if own else f"{command}: {name} failed: {type(error).__name__}: {text}")


def _need(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError:
        raise Refused(f"the command needs {module}, which is not installed: pip install 'jconv[compare]'") from None


def _layer(text: str) -> layers.Layer:
    try:
        return layers.parse(text)
    except ValueError as error:
        raise Refused(first_line(error)) from None


def _load(command: str, target: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION names."""
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise Refused(f"{command}: {target!r} must have the form MODULE:FUNCTION")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise Refused(f"{command}: there is no module {module_name!r} here") from None
        raise Refused(f"{command}: importing {module_name!r} failed: {first_line(error)}") from error
    except Exception as error:
        raise Refused(
            f"{command}: importing {module_name!r} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, [n for n in dir(found) if not n.startswith("_")], n=3)
            raise Refused(
                f"{command}: {module_name!r} has no {path!r}" + (f"; near: {', '.join(near)}" if near else "")
            )
        found = getattr(found, name)
    if not callable(found):
        raise Refused(f"{command}: {target} must be a function, it is of type {type(found).__name__}")
    return found


def _arguments(command: str, target: str, factory: str | None) -> tuple[Any, ...]:
    if factory is None:
        raise Refused(
            f"{command}: {target} needs arguments: --args MODULE:FACTORY, a function that gives them in a tuple"
        )
    try:
        given = _load(command, factory)()
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{command}: {factory} failed: {type(error).__name__}: {first_line(error)}") from error
    return tuple(given) if isinstance(given, tuple | list) and not hasattr(given, "_fields") else (given,)


def run(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    try:
        status = app(arguments, prog_name="python -m jconv", standalone_mode=False)
    except Refused as refused:
        print(f"jconv: {refused}", file=sys.stderr)
        return 2
    except typer.TyperException as error:
        print(f"jconv: {error.format_message()}", file=sys.stderr)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        return 130
    return status if isinstance(status, int) else 0
