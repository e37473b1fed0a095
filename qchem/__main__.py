"""`python -m qchem` is the `qchem` command."""

import sys


def main() -> int:
    """The command, from the first import on."""
    from qchem.command import leave_when_interrupted

    leave_when_interrupted()
    from qchem.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
