"""What a forked worker finds done already: imports, and every loop compiled."""

import stream.cli.rewind
import stream.cli.run  # noqa: F401  both for what they import
from stream.rehearsal import rehearse

rehearse()
