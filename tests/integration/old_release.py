"""A worker of the release before this one, as far as a group can tell: it knows the first schema only.

python -m tests.integration.old_release --app shop --instance w1
"""

import sys

from stream.processing import customer

newest = customer.SCHEMA
customer.SCHEMA = 1
from stream.processing import journal  # noqa: E402, F401  what it takes from `customer` is the old release's

customer.SCHEMA = newest  # rows are converted by the code at hand

from stream.processing import tick  # noqa: E402

tick._note = lambda *_: None  # type: ignore[assignment]  # it knew no field to note an alert in

from tests.integration import worker_process  # noqa: E402

if __name__ == "__main__":
    sys.exit(worker_process.main())
