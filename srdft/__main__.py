"""`python -m srdft` is the `srdft` command."""

import sys


def main() -> int:
    """The command, from the first import on."""
    from qchem.command import leave_when_interrupted

    leave_when_interrupted()
    from srdft.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
