"""python -m experiments.train: trains one of five networks on a folder of images, and goes on after any stop."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.train import loop, sharding
from experiments.train.settings import FIELDS, kind, resolve

EXAMPLES = """\b
Examples:
  python -m experiments.train --data mnist/ --model lenet --epochs 3 --out runs/lenet
  python -m experiments.train --data cifar10/ --config experiments/train/configs/cifar10_airbench.toml --out runs/air
  python -m experiments.train --out runs/air --resume
  python -m experiments.train --data cifar10/ --model resnet --rules both --steps 200 --out runs/both
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _parameter(field: dataclasses.Field) -> inspect.Parameter:
    """The command line's option for a setting; None where it is not given, so that a file's value holds."""
    name, text = field.name.replace("_", "-"), field.metadata["help"]
    if field.metadata["choices"]:
        text += f" One of {', '.join(map(str, field.metadata['choices']))}."
    if field.default != "" and kind(field) is not bool:
        text += f" [default: {field.default}]"
    flags = f"--{name}/--no-{name}" if kind(field) is bool else f"--{name}"
    option = typer.Option(flags, help=text, show_default=False)
    annotation = Annotated[kind(field) | None, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="A file with the same settings; the command line wins.")
    ],
)


def train(config: Path | None, **options: Any) -> None:
    """Trains a network on a folder of images."""
    settings = resolve({name: value for name, value in options.items() if value is not None}, config)
    loop.run(settings, Console(width=None if sys.stdout.isatty() else 120))


train.__signature__ = inspect.Signature([*map(_parameter, FIELDS.values()), CONFIG])  # pyright: ignore
train.__annotations__ = {each.name: each.annotation for each in train.__signature__.parameters.values()}  # pyright: ignore
app.command(epilog=EXAMPLES)(train)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command: a wrong setting ends in one line and exit status 2, a run that cannot go on in 1."""
    try:
        app(arguments, prog_name="python -m experiments.train", standalone_mode=False)
    except typer.TyperException as error:
        _end(2, error.format_message())
    except typer.Abort:
        _end(130, "stopped")
    except ValueError as error:
        _end(2, str(error))
    except (RuntimeError, OSError) as error:  # NotFinite, CheckpointError, a full disk
        _end(1, str(error))


def _end(status: int, line: str) -> None:
    print(f"train: {' '.join(line.split())}", file=sys.stderr)
    sharding.leave(status)


if __name__ == "__main__":
    main()
