"""`python -m srdft` is the `srdft` command."""

import sys

from srdft.cli import main

sys.exit(main())
