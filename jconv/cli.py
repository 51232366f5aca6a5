"""The command `jconv`, also `python -m jconv`. What it does stands in comparison/command.py, which needs the extra."""

import sys


def main(arguments: list[str] | None = None) -> None:
    """Runs the command. Exit status 1: rules disagree; 2: a wrong argument, or the extra is not installed."""
    try:
        from jconv.comparison import command
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "typer":
            raise
        print("jconv: the command needs typer, which is not installed: pip install 'jconv[compare]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(command.run(arguments))
