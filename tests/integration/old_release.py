"""A worker of the release before this one, as far as a group can tell: it knows the first schema only.

python -m tests.integration.old_release --app shop --instance w1
"""

import sys

from stream.processing import customer

customer.SCHEMA = 1
customer.ROW = customer.ROWS[1]

from stream.processing import tick  # noqa: E402  what it and all others take from `customer` is the old release's by now

tick._note = lambda *_: None  # type: ignore[assignment]  # it knew no field to note an alert in

from tests.integration import worker_process  # noqa: E402

if __name__ == "__main__":
    sys.exit(worker_process.main())
