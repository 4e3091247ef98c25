"""Every error Driftline raises, and what its catcher should do.

    DriftlineError
    ├── SettingsError         wrong settings or usage: exit code 2
    ├── InvalidEvent          one record cannot be used: it goes to the dead letters, the stream goes on
    ├── Retriable             wait, then try the same again
    │   ├── BrokerUnavailable
    │   ├── TransactionOpen   the worker that had the task before left a transaction undecided
    │   └── StoreUnavailable
    ├── TaskLost              another worker owns the task, or the store moved on: drop what is cached, recover
    │   └── RowsLost          somebody took rows out of the store: discard the task there, and rebuild it
    ├── CannotTell            a server refuses a question of `driftline doctor`: ask the others, and say so
    ├── OutcomeUnknown        nobody knows whether the transaction was committed: new producer, then recover
    └── Refused               going on would do harm: the worker stops and says what an operator can do
        ├── StoreAhead        Redis knows ticks that Kafka does not
        ├── JournalGap        the journal no longer holds what Redis lacks
        ├── NewerSchema       a record was written by a newer release
        ├── Damaged           a record of ours is not as Driftline writes it
        ├── Misconfigured     topics, partitions or partitioner do not fit together
        └── TooManyDeadLetters

Backends map their client library's errors to these at their boundary; nothing above them sees a library's error.
A message says what was found, where, and what to do.
"""


class DriftlineError(Exception):
    """The root; never raised itself."""


class SettingsError(DriftlineError):
    """Settings or arguments that cannot be used."""


class InvalidEvent(DriftlineError):
    """A record that cannot become an event.

    `reason` is one of `stream.events.REASONS`; `detail` says what was found, where in the record, and what to do.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Retriable(DriftlineError):
    """The same call may succeed later."""


class BrokerUnavailable(Retriable):
    """Kafka did not answer."""


class TransactionOpen(Retriable):
    """A task's committed offsets are not settled: its former owner's transaction is neither committed nor aborted."""


class StoreUnavailable(Retriable):
    """Redis did not answer."""


class TaskLost(DriftlineError):
    """The task is no longer ours, or its rows in the store are not the ones this worker knows."""


class CannotTell(DriftlineError):
    """A server will not or cannot answer a question that nothing but curiosity hangs on."""


class RowsLost(TaskLost):
    """The store has lost single rows of a task that it says it has."""


class OutcomeUnknown(DriftlineError):
    """A transaction was sent and no answer came."""


class Refused(DriftlineError):
    """Going on would lose or repeat something; an operator must decide."""


class StoreAhead(Refused):
    """The store has applied ticks that the committed offsets do not know."""


class JournalGap(Refused):
    """Ticks between the store and the committed offsets are missing from the journal."""


class NewerSchema(Refused):
    """Written by a newer release than this one."""


class Damaged(Refused):
    """One of our own records holds what no release writes: somebody else wrote it, or it was cut or changed."""


class Misconfigured(Refused):
    """Topics, partition counts or partitioner contradict each other."""


class TooManyDeadLetters(Refused):
    """So many records are unusable that something upstream is plainly wrong."""
