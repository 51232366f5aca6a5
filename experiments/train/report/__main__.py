"""Makes the report of a finished run anew: python -m experiments.train.report FOLDER."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.train import report

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="The run's folder, --out of python -m experiments.train.")],
) -> None:
    """Writes a run's pictures and report.html into its folder, and prints its table."""
    out = report.write(folder)
    Console().print(report.table.table(report.read(folder)))
    print(f"The report: {out}")


if __name__ == "__main__":
    try:
        app(prog_name="python -m experiments.train.report", standalone_mode=False)
    except typer.TyperException as error:
        print(f"report: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
