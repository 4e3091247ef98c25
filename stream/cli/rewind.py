"""Take the application back: to the beginning of the input topics, or to where Redis is. Workers must be stopped.

--to earliest counts everything that the input topics hold anew; alerts that were told are not told again. --to store
mends offsets that a tool has reset or retention has overtaken. --to earliest --keep-customers is for a Redis that has
outlived its Kafka.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime

from stream.backends.kafka import KafkaInputs, KafkaOutputs, KafkaTopic
from stream.backends.kafka.admin import leave
from stream.backends.kafka.offsets import Span, members, spans
from stream.backends.redis import RedisStore
from stream.cli.progress import progress
from stream.diagnosis.facts import Place
from stream.errors import Misconfigured, OutcomeUnknown, Refused, SettingsError, TaskLost
from stream.ports import Token
from stream.rewind import Found, Rewind, To
from stream.settings import Settings

INSTANCE = "rewind"
"""Under this name the command is the group's one member, so that a worker that joins ends its right to commit."""
JOIN_S = 30.0
ATTEMPTS = 5
"""A rebalance, or an answer that did not come, is met by looking again; each task is rewound once all the same."""


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--to", required=True, choices=("earliest", "store"), help="where to")
    parser.add_argument(
        "--keep-customers", action="store_true", help="with --to earliest: Kafka is new, Redis holds the customers"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Rewind every task that is not rewound already."""
    if arguments.keep_customers and arguments.to != "earliest":
        raise SettingsError("--keep-customers goes with --to earliest; --to store keeps the customers anyway")
    to = To.KEPT if arguments.keep_customers else To(arguments.to)
    _refuse_members(settings)
    alone = settings.model_copy(update={"application": settings.application.model_copy(update={"instance": INSTANCE})})
    with ExitStack() as stack:
        store = stack.enter_context(closing(RedisStore(settings)))
        store.check()
        inputs = KafkaInputs(alone)
        group = settings.application.name
        stack.callback(leave, settings, group, f"{group}-{INSTANCE}")
        stack.enter_context(closing(inputs))
        outputs = stack.enter_context(closing(KafkaOutputs(settings, INSTANCE, inputs.holds)))
        journal = stack.enter_context(closing(KafkaTopic(settings, settings.topic("journal"))))
        asked, changed = arguments.yes, 0
        for attempt in range(1, ATTEMPTS + 1):
            rewind = Rewind(settings, inputs, outputs, journal, store, _join(inputs, settings))
            todo = _todo(rewind, settings, to)
            changed = max(changed, len(todo))
            plan = _plan(to, todo)
            if plan and attempt == 1:
                print(f"{plan}.", file=sys.stderr)
            if plan and not asked:
                _ask()
                asked = True
                continue  # meanwhile the membership may have ended, and a worker have come and gone
            try:
                _run(rewind, todo, to)
                break
            except (TaskLost, OutcomeUnknown) as error:  # look again what is done already
                if attempt == ATTEMPTS:
                    raise Misconfigured(
                        f"{error}; stop every worker and run the same command again: it goes on with the tasks that "
                        "are not rewound"
                    ) from error
    if not changed:
        print("every task is there already; nothing was changed. Next: start workers")
    else:
        print(f"rewound {changed} tasks to {to.value}. Next: start workers")
    return 0


def _todo(rewind: Rewind, settings: Settings, to: To) -> list[Found]:
    """The tasks that are not there already.

    Raises:
        Misconfigured: to rewind one of them would do harm.
    """
    places = spans(settings, settings.inputs)
    found = [rewind.look(task, *_bounds(settings, places, task), to) for task in range(rewind.inputs.partitions)]
    todo = [one for one in found if not rewind.is_done(one, to)]
    refused = [said for one in todo if (said := rewind.refusal(one, to))]
    if refused:
        further = f" (and so {len(refused) - 1} further tasks)" if len(refused) > 1 else ""
        raise Misconfigured(f"{refused[0]}{further}")
    return todo


def _refuse_members(settings: Settings) -> None:
    others = [name for name in members(settings) if name != INSTANCE]
    if others:
        raise Misconfigured(
            f"the group {settings.application.name} has members: {', '.join(others)}. Stop these workers; one that has "
            f"been stopped stays a member for kafka.session_timeout_s, wait {settings.kafka.session_timeout_s:g} s"
        )


def _join(inputs: KafkaInputs, settings: Settings) -> Token:
    """Be the one member of the group, with all tasks."""
    until = time.monotonic() + JOIN_S + 2 * settings.kafka.session_timeout_s
    while time.monotonic() < until:
        token = inputs.poll(
            0.2, frozenset((topic, n) for topic in inputs.topics for n in range(inputs.partitions))
        ).token
        if token is not None and len(token.tasks) == inputs.partitions:
            return token
        if token is not None:
            _refuse_members(settings)
    raise Misconfigured(f"the group {settings.application.name} did not become free; stop every worker and run again")


def _bounds(settings: Settings, places: Mapping[Place, Span], task: int) -> tuple[dict[str, int], dict[str, int]]:
    begins = {topic: places[topic, task].begin for topic in settings.inputs}
    return begins, {topic: places[topic, task].end for topic in settings.inputs}


def _plan(to: To, todo: list[Found]) -> str:
    """What will happen, empty where nothing is lost by it."""
    if not todo:
        return ""
    if to is To.STORE:
        lost = {f"{topic}-{one.task}": count for one in todo for topic, count in one.lost.items()}
        if not lost:
            return ""
        return (
            f"retention has removed {sum(lost.values()):,} records before they were processed ({_counts(lost)}): they "
            "are lost. The customers are kept, and what the topics still hold is processed"
        )
    records = sum(sum(one.ends.values()) - sum(one.begins.values()) for one in todo)
    customers = sum(one.newest.customers for one in todo)
    if to is To.KEPT:
        plan = f"{customers:,} customers are kept and written into the new journal, and up to {records:,} records read"
    else:
        told = max(one.newest.stream_time_ms for one in todo)
        shown = f"{datetime.fromtimestamp(told / 1000, UTC):%Y-%m-%d %H:%M} UTC"
        plan = (
            f"{customers:,} customers are dropped and up to {records:,} records counted anew; alerts up to {shown} are "
            "not told again, models stay and learn from these events a second time"
        )
        gone = {f"{topic}-{one.task}": begin for one in todo for topic, begin in one.begins.items() if begin}
        if gone:
            plan += (
                f". Retention has removed {sum(gone.values()):,} records that the customers' counts still include "
                f"({_counts(gone)}): they would be lost"
            )
    return plan


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} of {name}" for name, count in counts.items())


def _ask() -> None:
    if not sys.stdin.isatty():
        raise SettingsError("nothing was changed; give --yes if that is wanted")
    print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was changed")


def _run(rewind: Rewind, todo: list[Found], to: To) -> None:
    with progress(f"rewinding to {to.value}", len(todo)) as advance:
        for one in todo:
            rewind.run(one, to)
            advance(1)
