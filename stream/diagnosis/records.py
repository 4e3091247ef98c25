"""Judging what stands in the topics: events, journal, model versions; and the clocks that made their times."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from stream.diagnosis import Finding, counted, lasting, listed, ok, warning, wrong
from stream.errors import InvalidEvent, NewerSchema
from stream.events import Event, Record
from stream.processing import clock, journal
from stream.processing.customer import OLDEST_SCHEMA, SCHEMA
from stream.processing.placement import is_placed
from stream.settings import Settings

CLOCK_S = 5.0
"""Clocks that differ by more should be set."""
MISPLACED_SHARE = 0.01


def inputs(
    settings: Settings, newest: Mapping[str, Sequence[Record]], partitions: int, now_ms: int
) -> Iterator[Finding]:
    """The newest records of each input topic: usable, rightly placed, neither stale nor of the future."""
    for topic, records in newest.items():
        if not records:
            yield warning(f"{topic} is empty", "look at its producers, unless it is new")
            continue
        events: list[Event] = []
        reasons: Counter[str] = Counter()
        usable = misplaced = 0
        for record in records:
            outcome = clock.read(record, settings.event_rules).outcome
            if isinstance(outcome, InvalidEvent):
                reasons[outcome.reason] += 1
                continue
            usable += 1
            if isinstance(outcome, Event):
                events.append(outcome)
            misplaced += not is_placed(outcome.customer, record.partition, partitions, settings.kafka.partitioner)
        if reasons.total() > settings.dead_letters.max_share * len(records):
            yield wrong(
                f"{topic}: {reasons.total()} of its newest {len(records)} records cannot be used ({_counted(reasons)})",
                "look at them in the dead letters; the worker stops at dead_letters.max_share",
            )
        elif reasons:
            yield warning(
                f"{topic}: {reasons.total()} of its newest {len(records)} records cannot be used ({_counted(reasons)})",
                "see docs/events.md",
            )
        if misplaced > MISPLACED_SHARE * usable:
            yield wrong(
                f"{topic}: {misplaced} of its newest {usable} usable records lie in a partition that "
                f"{settings.kafka.partitioner} does not put their customer in",
                "set kafka.partitioner to the producers', and let them key by customer id",
            )
        if events:
            yield _age(
                settings,
                topic,
                max(event.time_ms for event in events),
                max(one.timestamp_ms for one in records),
                now_ms,
            )


def _age(settings: Settings, topic: str, event_ms: int, record_ms: int, now_ms: int) -> Finding:
    age_s, ahead_s = (now_ms - event_ms) / 1000, (max(event_ms, record_ms) - now_ms) / 1000
    if ahead_s > CLOCK_S:
        return warning(
            f"{topic}: its newest record is {lasting(ahead_s)} in the future", "set the clocks of its producers by NTP"
        )
    if age_s > settings.tick.live_within_s:
        return warning(f"{topic}: its newest event is {lasting(age_s)} old", "look at the producers, or is it night?")
    return ok(f"{topic}: its newest event is {lasting(max(age_s, 0))} old")


def _counted(reasons: Counter[str]) -> str:
    return listed(f"{count} {reason}" for reason, count in reasons.most_common())


def journals(headers: Mapping[int, Mapping[str, object] | None], settings: Settings) -> Iterator[Finding]:
    """The newest journal record of each task against what this release reads."""
    fine = True
    for task, header in headers.items():
        if header is None:
            continue
        try:
            journal.check_schema(int(str(header["v"])), f"task {task}: its newest journal record")
        except NewerSchema as error:
            fine = False
            yield wrong(str(error), "run the release that wrote it, or a newer one")
        if header["application"] != settings.application.name:
            fine = False
            yield wrong(
                f"the journal holds ticks of application {header['application']!r}",
                "give each application a journal topic of its own",
            )
    known = [header for header in headers.values() if header is not None]
    schemas = sorted({int(str(header["v"])) for header in known})
    configs = {str(header["config"]) for header in known}
    if fine:
        read = f"this release reads {OLDEST_SCHEMA} to {SCHEMA}"
        newest = f"the newest ticks of {counted(len(known), 'task')} have schema {listed(schemas)}, {read}"
        yield ok(newest if known else "the journal is empty")
    if configs - {settings.config_hash}:
        yield warning(
            f"the newest ticks were made under configuration {listed(sorted(configs))}, these settings are "
            f"{settings.config_hash}",
            "none needed if they were changed on purpose; else give doctor the workers' settings",
        )


def broker_clock(newest_ms: int | None, now_ms: int) -> Finding:
    """The newest time that a broker is known to have set: it shows a clock that is ahead, never one behind."""
    if newest_ms is None:
        return warning("the brokers' clocks cannot be told: they have set no time yet", "set them by NTP")
    ahead_s = (newest_ms - now_ms) / 1000
    if ahead_s > CLOCK_S:
        return warning(f"a broker's clock is {lasting(ahead_s)} ahead of this machine's", "set both by NTP")
    return ok(f"the brokers' clocks are not ahead (newest time set by one: {lasting(max(-ahead_s, 0))} ago)")


def model(number: int, age_s: float | None, ready: Mapping[str, bool], learned: Mapping[str, int]) -> Finding:
    """The newest model version."""
    if not number:
        return ok("no version yet: the models are still warming up")
    warming = [name for name, is_ready in ready.items() if not is_ready]
    age = "" if age_s is None else f", {lasting(age_s)} old"
    counted = listed(f"{count:,} {what}" for what, count in learned.items())
    return ok(f"version {number}{age}, from {counted}" + (f"; still warming up: {listed(warming)}" if warming else ""))
