"""One real worker in a process of its own, which can be told to die or to freeze at a named point of its N-th tick.

    python -m tests.integration.worker_process --app shop --instance w1 --kill-at in-transaction:5

With `--obey FOLDER` it does so whenever a file of a step's name appears there: `kill` or `stop` (SIGSTOP), as it says.
Settings come from the environment as ever. Progress goes to standard output, one JSON object a line with its
time (`at`, Unix seconds): `ready`, `tick` (task and seq), `reached` (a step at which it obeys), `frozen`, `thawed`,
`stopped`.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from stream.backends import redis as redis_backend
from stream.backends.kafka import inputs as kafka_inputs
from stream.backends.kafka.outputs import KafkaOutputs
from stream.backends.librdkafka import LibrdkafkaOutputs
from stream.backends.librdkafka import outputs as librdkafka_outputs
from stream.backends.redis import RedisStore
from stream.cli import logs
from stream.cli.run import assemble
from stream.errors import DriftlineError
from stream.metrics import Metrics
from stream.ports import Offset, Outgoing, Token
from stream.processing.tick import TickResult
from stream.rehearsal import rehearse
from stream.settings import load
from stream.trainer import Trainer
from stream.worker import Worker

STEPS = ("after-poll", "after-read", "before-commit", "in-transaction", "before-apply", "mid-apply", "in-publish")
"""The numbered steps of a turn (docs/delivery.md) in their order, and the trainer's transaction."""
SMALL_CHUNK = 2


class Producer(librdkafka_outputs.Producer):
    """One whose calls can be replaced, as those of a class in C cannot."""


librdkafka_outputs.Producer = Producer


def say(what: str, **more: Any) -> None:
    """One line of progress, at once."""
    sys.stdout.buffer.write(orjson.dumps({"what": what, "at": time.time(), **more}) + b"\n")
    sys.stdout.flush()


DEEDS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class FailPoint:
    """Calls `fail` at `step` of tick `number`, once."""

    def __init__(self, step: str, number: int, fail: Callable[[], None]) -> None:
        assert step in STEPS, step
        self._step, self._number, self._fail = step, number, fail
        self._ticks = 0
        self._done = False

    def begin(self) -> None:
        """Another tick is about to be committed."""
        self._ticks += 1

    def reach(self, step: str) -> None:
        if step == self._step and self._ticks >= self._number and not self._done:
            self._done = True
            self._fail()


class Obeying:
    """A fail point that others set while the worker runs: a file in `folder` names the step and holds the deed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> None:
        """A tick is like any other."""

    def reach(self, step: str) -> None:
        with suppress(FileNotFoundError):
            order = self._folder / step
            deed = DEEDS[order.read_text()]
            order.unlink()
            say("reached", step=step)
            os.kill(os.getpid(), deed)


class FailingOutputs:
    """The worker's writer, with the points around and inside its transaction."""

    def __init__(self, outputs: KafkaOutputs | LibrdkafkaOutputs, point: FailPoint | Obeying) -> None:
        self._outputs, self._point = outputs, point

    def commit(self, records: Sequence[Outgoing], offsets: Sequence[Offset], token: Token) -> Sequence[int]:
        if not offsets:  # the text of a configuration, which is no tick
            return self._outputs.commit(records, offsets, token)
        self._point.begin()
        self._point.reach("before-commit")
        producer = self._outputs._ensure()
        commit_transaction = type(producer).commit_transaction

        def commit(*patience: float) -> None:
            producer.flush()  # records and offsets lie on the broker, undecided
            self._point.reach("in-transaction")
            commit_transaction(producer, *patience)

        producer.commit_transaction = commit
        written = self._outputs.commit(records, offsets, token)
        self._point.reach("before-apply")
        return written

    def reset(self) -> None:
        self._outputs.reset()

    def close(self) -> None:
        self._outputs.close()


def fail_inside_apply(store: RedisStore, point: FailPoint | Obeying) -> None:
    """Small chunks, and a point after a chunk that is not the last."""
    redis_backend.CHUNK_CUSTOMERS = SMALL_CHUNK
    script = store._apply

    def apply(keys: Any, arguments: Any) -> Any:
        answer = script(keys, arguments)
        if not arguments[5]:
            point.reach("mid-apply")
        return answer

    store._apply = apply


def fail_after(target: Any, method: str, point: FailPoint | Obeying, step: str) -> None:
    """A point behind each answer of a port's method."""
    call = getattr(target, method)

    def called(*arguments: Any) -> Any:
        answer = call(*arguments)
        point.reach(step)
        return answer

    setattr(target, method, called)


def fail_inside_publish(trainer: Trainer, point: FailPoint | Obeying) -> None:
    """A point at which a model version lies on the broker, undecided."""
    make = trainer._make_outputs

    def made() -> KafkaOutputs:
        outputs = make()
        commit = outputs.commit

        def publish(*arguments: Any) -> Any:
            producer = outputs._ensure()
            commit_transaction = type(producer).commit_transaction

            def decide(*patience: float) -> None:
                producer.flush()
                point.reach("in-publish")
                commit_transaction(producer, *patience)

            producer.commit_transaction = decide
            return commit(*arguments)

        outputs.commit = publish
        return outputs

    trainer._make_outputs = made


def main() -> int:
    """Run until told to stop; the exit code is that of `driftline run`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--app", required=True)
    parser.add_argument("--instance", required=True)
    parser.add_argument("--kill-at", metavar="STEP:N")
    parser.add_argument("--freeze-at", metavar="STEP:N:SECONDS")
    parser.add_argument("--obey", metavar="FOLDER", type=Path)
    parser.add_argument("--max-poll-s", type=float)
    parser.add_argument("--metadata-s", type=float)
    parser.add_argument("--rehearse", action="store_true", help="as `driftline run` does, before it joins")
    parsed = parser.parse_args()
    os.environ["DRIFTLINE_APPLICATION__NAME"] = parsed.app
    os.environ["DRIFTLINE_APPLICATION__INSTANCE"] = parsed.instance
    if parsed.max_poll_s:
        kafka_inputs.MAX_POLL_INTERVAL_MS = round(parsed.max_poll_s * 1000)
    if parsed.metadata_s:
        kafka_inputs.METADATA_MAX_AGE_MS = round(parsed.metadata_s * 1000)
    settings = load()
    logs.configure(settings.log)
    try:
        if parsed.rehearse:
            rehearse()
        worker = assemble(settings, Metrics())
        _prepare(worker, parsed)
        signal.signal(signal.SIGTERM, lambda *_: setattr(worker, "stopping", True))
        say("started")
        try:
            _run(worker)
        finally:
            worker.close()
    except DriftlineError as error:
        print(f"driftline: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    say("stopped")
    return 0


def _prepare(worker: Worker, parsed: argparse.Namespace) -> None:
    def see(result: TickResult) -> None:
        say("tick", task=result.entry.task, seq=result.entry.seq, version=result.entry.model_version)

    worker._on_tick = see
    point: FailPoint | Obeying
    if parsed.kill_at:
        step, number = parsed.kill_at.split(":")
        point = FailPoint(step, int(number), lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif parsed.freeze_at:
        step, number, seconds = parsed.freeze_at.split(":")

        def freeze() -> None:
            say("frozen")
            time.sleep(float(seconds))
            say("thawed")

        point = FailPoint(step, int(number), freeze)
    elif parsed.obey:
        point = Obeying(parsed.obey)
    else:
        return
    ports = worker._ports
    worker._ports = ports._replace(outputs=FailingOutputs(ports.outputs, point))
    fail_after(ports.inputs, "poll", point, "after-poll")
    fail_after(ports.store, "load", point, "after-read")
    fail_inside_apply(ports.store, point)
    fail_inside_publish(worker._trainer, point)


def _run(worker: Worker) -> None:
    ready: list[int] | None = None
    while not worker.stopping:
        worker.turn()
        now = sorted(worker._tasks) if worker.ready else None
        if now != ready:
            say("ready" if now is not None else "recovering", tasks=now)
            ready = now


if __name__ == "__main__":
    sys.exit(main())
