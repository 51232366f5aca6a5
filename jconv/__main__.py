"""`python -m jconv`: see cli.py."""

from jconv.cli import main

if __name__ == "__main__":
    main()
