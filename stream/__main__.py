"""`python -m stream` is the command `driftline`."""

import sys

from stream.cli import main

sys.exit(main())
