"""Many records in transactions that one process can hold, and what to do where nobody knows whether one was made."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from stream.errors import OutcomeUnknown, TaskLost
from stream.ports import Offset, Outgoing, Outputs, Token

T = TypeVar("T")
BATCH = 2_000
"""Records a transaction."""
BATCH_BYTES = 20_000_000


def batches(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in their order, so many at a time as a transaction takes by number and by bytes, at least one.

    >>> [len(batch) for batch in batches([9_000_000] * 5, lambda size: size)]
    [3, 2]
    """
    batch: list[T] = []
    held = 0
    for item in items:
        batch.append(item)
        held += size(item)
        if len(batch) >= BATCH or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def commit(
    outputs: Outputs,
    records: Sequence[Outgoing],
    offsets: Sequence[Offset],
    token: Token,
    again: str = "it goes on where this one came to",
) -> Sequence[int]:
    """Commit; `again` says what the same command does when it is run once more.

    Raises:
        OutcomeUnknown: all or nothing was written, nobody knows which.
        Misconfigured: a record is larger than its topic takes.
    """
    try:
        return outputs.commit(records, offsets, token)
    except (OutcomeUnknown, TaskLost) as error:
        raise OutcomeUnknown(f"{error}; run the same command again: {again}") from error
