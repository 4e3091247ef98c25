"""What logs call a customer: nothing, a short hash, or the id, as `log.customers` says."""

import hashlib
from typing import Literal

Customers = Literal["none", "hashed", "plain"]


def alias(customer: str) -> str:
    """Ten hexadecimal digits, the same in every log of every worker. Whoever knows an id can find it by them.

    >>> alias("c-1042")
    'baa4545903'
    """
    return hashlib.blake2b(customer.encode(), digest_size=5).hexdigest()


def called(customer: str, how: Customers) -> str | None:
    """The name to log; None where there is to be none."""
    if how == "none":
        return None
    return customer if how == "plain" else alias(customer)
