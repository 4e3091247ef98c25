"""The worker: the loop that turns polled records into committed ticks.

The order of a turn is the guarantee (docs/delivery.md):

    1. poll, and take the token of membership in the same critical section
    2. read the marker and the rows of the customers in the batch
    3. run the tick: nothing leaves the process
    4. one transaction: alerts, dead letters, journal, offsets; refused if the token is stale
    5. after the commit, apply the after-images to the store by the guarded script

Whatever fails, the tasks concerned are recovered: dropped from memory, compared with Kafka, replayed from the journal.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stream.chunks import chunked
from stream.errors import BrokerUnavailable, OutcomeUnknown, Retriable, RowsLost, TaskLost, TransactionOpen
from stream.events import Record
from stream.metrics import Metrics
from stream.ports import Clock, Inputs, Marker, Offset, Outgoing, Outputs, Store, Token, Topic
from stream.processing import journal, tick
from stream.processing.alerts import CONTENT_TYPE
from stream.processing.clock import Decoded, raised, read, stream_time, take
from stream.processing.journal import TaskState
from stream.processing.tick import DeadLetter, TickInput, TickResult
from stream.processing.version import Version, warming
from stream.quality import Quality
from stream.recovery import Recovery
from stream.reporting import Held, Reporter
from stream.rows import RowCache
from stream.settings import Settings
from stream.trainer import Trainer
from stream.versions import CONFIG_KEY, Versions

log = logging.getLogger(__name__)

RETRY_S = 0.5
LARGEST_LETTER_BYTES = 1_800_000
RECOVERY_TURN_S = 5.0
CHECK_STORE_S = 5.0
STEP_EVENTS = 200
"""For so many events of a turn the trainer takes one more step: full ticks do not outrun it, small ones do not wait."""
TRAIN_RETRY_S = 2.0
TURN_TICKS = 4
"""So many full ticks a turn, however many tasks are behind: what is written in one transaction has a bound, and a new
model version does not wait for long."""


@dataclass(slots=True)
class Task:
    """One partition number over all input topics, as this worker holds it. Not ready while `recovery` is set.

    One that is not `pinned` has no offsets committed: it commits an empty tick if there is nothing else to.
    """

    number: int
    recovery: Recovery | None
    cache: RowCache
    buffers: dict[str, deque[Decoded]]
    state: TaskState = field(default_factory=TaskState)
    heard: dict[str, float] = field(default_factory=dict)
    checked_at: float = 0.0
    pinned: bool = True


class Prepared(NamedTuple):
    """A tick that has run and is not committed yet."""

    task: Task
    result: TickResult
    data: bytes


class Ports(NamedTuple):
    """The outside, as one worker sees it."""

    inputs: Inputs
    outputs: Outputs
    journal: Topic
    models: Topic
    store: Store


class Worker:
    """Runs ticks until told to stop. `trainer` is stepped between ticks; `on_tick` sees every committed tick.

    `turned_at` (monotonic seconds) is when the loop last turned; `stopping` ends it after the turn at hand.
    """

    def __init__(
        self,
        settings: Settings,
        ports: Ports,
        trainer: Trainer,
        metrics: Metrics,
        clock: Clock,
        on_tick: Callable[[TickResult], None] | None = None,
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._trainer = trainer
        self._clock = clock
        self._on_tick = on_tick
        self._rules = tick.rules(settings)
        self._event_rules = settings.event_rules
        self._versions = Versions(ports.models)
        self.version: Version = warming(settings.models)
        self._token: Token | None = None
        self._tasks: dict[int, Task] = {}
        self._retry_at = self._train_at = 0.0
        self._unfenced = False
        self._config_kept = False
        self._silent: Retriable | None = None
        self._busy = False
        self._fault = ""
        self._quality = Quality(settings)
        self._report = Reporter(metrics, clock.wall_ms, settings.log.customers)
        self.stopping = False
        self.turned_at = self._clock.monotonic()

    @property
    def ready(self) -> bool:
        """Whether the worker is a member, and every task of it recovered."""
        return self.waiting is None

    @property
    def waiting(self) -> str | None:
        """What keeps it from being ready; None when it is."""
        if self._token is None:
            return "not a member of the group: starting, a rebalance goes on, or Kafka does not answer"
        stands_s = self._clock.monotonic() - self.turned_at
        if stands_s > self._settings.kafka.session_timeout_s:
            return f"one turn of the loop has lasted for {stands_s:.0f} s: Kafka does not answer, or Redis"
        tasks = [task.number for task in list(self._tasks.values()) if task.recovery is not None]
        return f"recovering tasks {tasks}{self._fault and ': '}{self._fault}" if tasks else None

    def run(self) -> None:
        """Turn until `stopping` is set.

        Raises:
            Refused: going on would do harm; the message says what to do.
        """
        while not self.stopping:
            self.turn()
        log.info("stopping", extra={"tasks": sorted(self._tasks)})

    def turn(self) -> bool:
        """One turn of the loop; returns whether anything was committed or learned, or a task is being recovered."""
        self._busy = self._turn()
        held = {number: Held(task.recovery is None, task.state) for number, task in self._tasks.items()}
        self._report.holding(held, self._ports.inputs.heard_ends)
        return self._busy

    def _turn(self) -> bool:
        began = self.turned_at = self._clock.monotonic()
        wait_s = 0.0 if self._busy else self._settings.tick.max_wait_ms / 1000
        try:
            polled = self._ports.inputs.poll(wait_s, self._full())
            polled_at = self._clock.monotonic()
            self._report.spent("poll")
            self._follow(polled.token)
            self._take_in(polled.records)
            self._report.spent("decode")
            if began < self._retry_at or self._token is None:
                return False
            if self._unfenced:
                self._ports.outputs.reset()  # before any task is recovered: until then the old writer may still commit
                self._unfenced = False
            recovering = self._recover()
            self._adopt()
            self._report.spent("recover")
            prepared = self._prepare()
            self._report.spent("load")
            if prepared and self._commit(prepared):
                self._report.turned(self._clock.monotonic() - polled_at)
            # Ticks first: what waits for a recovered task does not wait for the trainer as well.
            trained = not recovering and self._train(sum(len(one.result.entry.features) for one in prepared))
            self._report.spent("train")
        except Retriable as error:
            # The outside does not answer: all is recovered, polling meanwhile, so that the membership is kept.
            self._lose(list(self._tasks.values()), _why(error), error)
            return False
        return trained or bool(prepared) or any(task.recovery is not None for task in self._tasks.values())

    def close(self) -> None:
        """Give everything back; what is committed but not applied is replayed by whoever comes next."""
        self._trainer.close()
        for port in self._ports:
            port.close()

    # 1. Poll

    def _full(self) -> frozenset[tuple[str, int]]:
        limit = 2 * self._settings.tick.max_events
        return frozenset(
            (topic, task.number)
            for task in self._tasks.values()
            for topic, buffer in task.buffers.items()
            if len(buffer) >= limit
        )

    def _follow(self, token: Token | None) -> None:
        """A new generation or assignment: every task is recovered before it is worked on."""
        before, self._token = self._token, token
        if token is None:
            self._tasks.clear()
        elif token != before:
            log.info("assigned", extra={"generation": token.generation, "tasks": sorted(token.tasks)})
            self._tasks = {number: self._new_task(number, token) for number in sorted(token.tasks)}
            self._fault = ""

    def _new_task(self, number: int, token: Token) -> Task:
        inputs, _, journal_topic, _, store = self._ports
        recovery = Recovery(
            number,
            inputs.partitions,
            self._settings,
            inputs,
            store,
            journal_topic,
            token.generation,
            self._clock.monotonic,
        )
        buffers = {topic: deque[Decoded]() for topic in inputs.topics}
        return Task(number, recovery, RowCache(self._settings.customers.cache_rows), buffers)

    def _take_in(self, records: Sequence[Record]) -> None:
        now = self._clock.monotonic()
        for record in records:
            task = self._tasks.get(record.partition)
            if task is None or task.recovery is not None:
                continue  # read again once the task is recovered and sought
            decoded = read(record, self._event_rules)
            task.buffers[record.topic].append(decoded)
            if decoded.time_ms:  # what cannot be used does not make the other topic wait
                task.heard[record.topic] = now

    def _recover(self) -> bool:
        recovering = [task for task in self._tasks.values() if task.recovery is not None]
        for task in recovering:
            if self._clock.monotonic() - self.turned_at > RECOVERY_TURN_S:
                break  # poll again first: a member that does not is thrown out
            assert task.recovery is not None
            try:
                state = task.recovery.step()
            except (TaskLost, TransactionOpen) as error:
                self._lose([task], _why(error), error)
                continue
            if state is None:
                continue
            self._report.recovered(task.recovery.replayed)
            log.info(
                "recovered",
                extra={"task": task.number, "seq": state.seq, "replayed": task.recovery.replayed},
            )
            new = state.seq == 0 and self._settings.kafka.start_at == "latest"  # the latest moves on meanwhile
            task.pinned = not (task.recovery.expired or new)
            task.state, task.recovery = state, None
            task.heard = dict.fromkeys(task.buffers, self._clock.monotonic())
        return bool(recovering)

    # 2. and 3. Read, run

    def _train(self, events: int) -> bool:
        """Step the trainer, after a turn of so many events; where it cannot go on, ticks do."""
        if self.turned_at < self._train_at:
            return False
        steps = 0
        try:
            while steps <= events // STEP_EVENTS and self._trainer.step():
                steps += 1
        except Retriable as error:
            self._train_at = self._clock.monotonic() + TRAIN_RETRY_S
            log.warning("the trainer waits: %s", error)
        return steps > 0

    def _adopt(self) -> None:
        """Change to the newest model version, between ticks; keep the text behind our configuration hash beside it."""
        version = self._versions.refresh()
        self._keep_config()
        if version is None or version is self.version:
            return
        self.version = version
        self._report.adopted(version, self._versions.published_ms.get(version.number, 0))

    def _keep_config(self) -> None:
        key = self._settings.config_hash
        if self._config_kept or key in self._versions.configs:
            return
        assert self._token is not None
        text = Outgoing(self._settings.topic("models"), 0, f"{CONFIG_KEY}{key}".encode(), self._settings.config_text)
        self._config_kept = self._write([text], (), list(self._tasks.values())) is not None

    def _prepare(self) -> list[Prepared]:
        prepared: list[Prepared] = []
        room = TURN_TICKS * self._settings.tick.max_events
        for task in [task for task in self._tasks.values() if task.recovery is None]:
            if room <= 0:
                for one in prepared:  # the others come first in the next turn
                    self._tasks[one.task.number] = self._tasks.pop(one.task.number)
                break
            try:
                tick = self._run(task)
            except TaskLost as error:
                if isinstance(error, RowsLost):
                    self._ports.store.discard(task.number)
                self._lose([task], "store", error)
                continue
            if tick is not None:
                prepared.append(tick)
                entry = tick.result.entry
                room -= len(entry.features) + len(entry.wakes) + len(tick.result.dead_letters)
        return prepared

    def _run(self, task: Task) -> Prepared | None:
        settings, state, store = self._settings.tick, task.state, self._ports.store
        ended = self._released(task)
        highs = {topic: state.highs.get(topic, 0) for topic in task.buffers}
        heads = [buffer[0].time_ms for buffer in task.buffers.values() if buffer]
        start_ms = max(state.stream_time_ms, min(heads, default=0))
        until_ms = start_ms + round(settings.max_span_hours * 3_600_000)
        if state.stream_time_ms < state.history_until_ms:  # a tick is told as a whole, or it is not
            until_ms = min(until_ms, state.history_until_ms)
        taken = take(task.buffers, ended, highs, settings.max_events, until_ms)
        highs = raised(highs, taken)
        released = frozenset(topic for topic in ended if not task.buffers[topic])
        wall_ms = self._clock.wall_ms()
        live = state.live
        if taken:
            live = abs(wall_ms - max(highs.values())) <= settings.live_within_s * 1000
        follow_ms = wall_ms - round(settings.idle_after_s * 1000) if live else None
        now_ms = stream_time(state.stream_time_ms, highs, released, follow_ms)
        # A clock in the future must not make the customers of a whole task look silent for years.
        now_ms = max(state.stream_time_ms, min(now_ms, wall_ms + round(settings.max_ahead_s * 1000)))
        wakes = store.due(task.number, now_ms, settings.max_wakes) if now_ms else []
        if not taken and not wakes and task.pinned:
            self._check_store(task)
            return None
        customers = tick.touched(taken, wakes)
        marker, loaded = store.load(task.number, task.cache.missing(customers))
        self._compare(task, marker)
        rows, known = task.cache.gather(customers, loaded)
        self._quality.check_placement(task.number, self._ports.inputs.partitions, customers, known)
        self._report.spent("load")
        before = TickInput(
            task.number,
            self._ports.inputs.partitions,
            state,
            taken,
            wakes,
            sorted(released),
            now_ms,
            live,
            self.version,
        )
        result = tick.run(before, customers, rows, known, self._rules, self._report.spent)
        data = journal.encode(result.entry)
        self._report.spent("journal")
        return Prepared(task, result, data)

    def _check_store(self, task: Task) -> None:
        """Notice a store that was emptied or rolled back while the task has nothing to do."""
        if self.turned_at - task.checked_at >= CHECK_STORE_S:
            task.checked_at = self.turned_at
            self._compare(task, self._ports.store.load(task.number, ())[0])

    def _compare(self, task: Task, marker: Marker | None) -> None:
        seq = marker.state.seq if marker else 0
        if seq != task.state.seq:
            raise TaskLost(
                f"the store is at tick {seq} of task {task.number}, this worker at {task.state.seq}: it was emptied or "
                "rolled back, or another worker has the task; the journal brings it level"
            )

    def _released(self, task: Task) -> frozenset[str]:
        """Topics read to their end and silent for `tick.idle_after_s`, as the broker has said after that time."""
        now, idle_s = self._clock.monotonic(), self._settings.tick.idle_after_s
        silent = {topic: heard + idle_s for topic, heard in task.heard.items() if heard + idle_s <= now}
        return frozenset(
            topic for topic, since in silent.items() if topic in self._ports.inputs.ended(task.number, since)
        )

    # 4. Commit

    def _commit(self, prepared: Sequence[Prepared]) -> bool:
        """Write the ticks in one transaction and apply them; returns whether they were committed."""
        assert self._token is not None
        records: list[Outgoing] = []
        offsets: list[Offset] = []
        last_chunk = []
        for task, result, data in prepared:
            entry = result.entry
            alerts = self._settings.topic("alerts")
            records += [Outgoing(alerts, None, a.key.encode(), a.value, (CONTENT_TYPE,)) for a in entry.alerts]
            records += [self._dead_letter(letter) for letter in result.dead_letters]
            headers = {"driftline-seq": b"%d" % entry.seq}
            records += chunked(self._settings.topic("journal"), task.number, b"%d" % task.number, data, headers)
            last_chunk.append(len(records) - 1)
            offsets += [
                Offset(topic, task.number, next_offset, entry.seq, entry.state.incarnation)
                for topic, next_offset in entry.state.offsets.items()
            ]
        written = self._write(records, offsets, [one.task for one in prepared])
        if written is None:
            return False
        self._report.spent("commit")
        self._silent = None
        for one, place in zip(prepared, last_chunk, strict=True):
            self._apply(one, written[place])
        return True

    def _write(
        self, records: Sequence[Outgoing], offsets: Sequence[Offset], tasks: Sequence[Task]
    ) -> Sequence[int] | None:
        """One transaction for these tasks; returns the records' offsets, None where they are to be recovered."""
        assert self._token is not None
        try:
            return self._ports.outputs.commit(records, offsets, self._token)
        except TaskLost as error:
            self._lose(tasks, "stale", error)
        except OutcomeUnknown as error:
            self._lose(list(self._tasks.values()), "unknown", error)
            self._unfenced = True
        return None

    def _dead_letter(self, letter: DeadLetter) -> Outgoing:
        record = letter.record
        headers = [
            *record.headers,
            ("driftline-reason", letter.reason.encode()),
            ("driftline-detail", letter.detail.encode()),
            ("driftline-topic", record.topic.encode()),
            ("driftline-partition", b"%d" % record.partition),
            ("driftline-offset", b"%d" % record.offset),
        ]
        value = record.value
        if value is None and record.key is None:
            # The client refuses a record with neither key nor value.
            headers.append(("driftline-null-value", b"1"))
            value = b""
        if value is not None and len(value) > LARGEST_LETTER_BYTES:
            # No topic of ours takes more: the record itself stays where its headers say.
            headers.append(("driftline-truncated", b"%d" % len(value)))
            value = value[:LARGEST_LETTER_BYTES]
        return Outgoing(self._settings.topic("dead_letters"), None, record.key, value, tuple(headers))

    # 5. Apply

    def _apply(self, prepared: Prepared, journal_offset: int) -> None:
        assert self._token is not None
        task, result, data = prepared
        entry = result.entry
        marker = Marker(entry.state, self._token.generation, journal_offset, entry.partitions)
        try:
            if self._silent is not None:
                raise self._silent  # each task would wait for another time-out
            self._ports.store.apply(task.number, entry.prev_seq, marker, entry.customers, entry.rows, entry.forgotten)
        except (TaskLost, Retriable) as error:
            self._silent = error if isinstance(error, Retriable) else None
            self._lose([task], _why(error), error)  # committed: the journal brings the store level
        else:
            task.state, task.pinned = entry.state, True
            task.cache.put(entry.customers, entry.rows, entry.forgotten)
        self._report.spent("apply")
        self._report.committed(result, len(data))
        if self._on_tick is not None:
            self._on_tick(result)
        self._quality.check(result)

    def _lose(self, tasks: Sequence[Task], reason: str, error: Exception) -> None:
        """Drop what these tasks hold in memory and recover them."""
        log.warning("recovering: %s", error, extra={"tasks": [task.number for task in tasks], "reason": reason})
        self._report.lost(reason, len(tasks))
        self._fault = str(error)
        if self._token is not None:
            for task in tasks:
                self._tasks[task.number] = self._new_task(task.number, self._token)
        if isinstance(error, Retriable):
            self._retry_at = self._clock.monotonic() + RETRY_S


def _why(error: Exception) -> str:
    """The reason under which an error is counted, one of `metrics.LOST`."""
    if isinstance(error, BrokerUnavailable):
        return "broker_unavailable"
    if isinstance(error, TransactionOpen):
        return "open_transaction"
    return "store_unavailable" if isinstance(error, Retriable) else "store"
