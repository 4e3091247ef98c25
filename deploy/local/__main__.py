"""`python -m deploy.local COMMAND`: a shop to try Driftline on, and to break it on.

Two workers, Kafka, Redis (or Valkey), a shop that replays real baskets, the example CRM, and Prometheus where there is
one, all on 127.0.0.1. Everything it writes lies in one folder, which `down` removes.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import redis
from kafka import KafkaProducer

from deploy.local import stack
from deploy.local.part import ROOT, Failed
from stream.settings import load
from tests.servers import ServerUnavailable

GARBAGE = (b"{no json", b"[1, 2]", b'{"event": "Product Viewed"}', b'{"userId": "c-1", "timestamp": "yesterday"}')


def main() -> int:
    parser = argparse.ArgumentParser("python -m deploy.local", description=__doc__)
    parser.add_argument(
        "--run", type=Path, default=ROOT / ".run", metavar="DIR", help="logs, data and state (.run beside the Makefile)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    starting = commands.add_parser("up", help="start everything, wait for the first alert")
    starting.add_argument(
        "--speed",
        type=float,
        default=21_600,
        help="the shop's seconds a second (%(default)s: its year takes 24 minutes)",
    )
    commands.add_parser("down", help="end everything and remove what it wrote")
    commands.add_parser("status", help="each part with its process id, state and address; rules that fire")
    for name, said in (
        ("restart", "end a part in order, if it runs, and start it"),
        ("kill", "SIGKILL a part"),
        ("pause", "SIGSTOP a part: connections stay open, nothing answers"),
        ("resume", "SIGCONT it"),
    ):
        commands.add_parser(name, help=said).add_argument("name", choices=stack.NAMES)
    commands.add_parser("empty-redis", help="FLUSHALL")
    garbage = commands.add_parser("garbage", help="send records that cannot be used into clickstream")
    garbage.add_argument("count", type=int, nargs="?", default=1_000, help="how many (%(default)s)")
    arguments = parser.parse_args()
    arguments.run = arguments.run.resolve()
    try:
        return run(arguments)
    except (Failed, ServerUnavailable) as error:
        print(f"deploy.local: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # head has seen enough
        return 0
    except KeyboardInterrupt:
        return 130


def run(arguments: argparse.Namespace) -> int:
    """One command; returns the exit code."""
    where: Path = arguments.run
    match arguments.command:
        case "up":
            count = stack.up(where, arguments.speed, lambda text: print(text, flush=True))
            print(f"up; {f'the CRM has its first {count} alerts' if count else 'no alert yet: models need events'}\n")
            status(where)
            print(advice(where))
        case "down":
            print(", ".join(stack.down(where)) or "nothing was running")
        case "status":
            return status(where)
        case "restart":
            part = stack.part(where, arguments.name)
            part.stop()
            if part.name == "shop" and "--again" not in part.command:
                part.command = [*part.command, "--again"]  # what it had fed stays: it begins another year
            part.start()
        case "kill":
            stack.part(where, arguments.name).kill()
        case "pause":
            stack.part(where, arguments.name).signal(signal.SIGSTOP)
        case "resume":
            stack.part(where, arguments.name).signal(signal.SIGCONT)
        case "empty-redis":
            with redis.Redis.from_url(f"redis://{stack.part(where, 'redis').address}/0") as client:
                client.flushall()
        case "garbage":
            send_garbage(where, arguments.count)
    return 0


def status(where: Path) -> int:
    """Print a line a part and the rules that fire; exit code 1 where a part is not well."""
    parts = stack.parts(where)
    if not parts:
        print("nothing is up; start it by `make up`")
        return 1
    faults = {part.name: stack.fault(part) for part in parts}
    for part in parts:
        print(f"{part.name:11} {part.pid:7}  {part.address:16} {faults[part.name] or 'ready'}")
    print(f"{stack.delivered(where)} alerts at the CRM")
    for state, said, page in sorted(stack.firing(where)):
        print(f"{state:8} {said}: {page}")
    done = {"shop"}  # ends by itself once its year is over
    return int(any(why and name not in done for name, why in faults.items()))


def advice(where: Path) -> str:
    """What an operator may want to know next."""
    python, here = os.path.relpath(sys.executable), os.path.relpath(where)
    local = f"{python} -m deploy.local" + ("" if where == ROOT / ".run" else f" --run {here}")
    driftline = f"{python} -m stream --config {here}/driftline.toml"
    return f"""
doctor     {driftline} doctor: what is wrong, and how to mend it
logs       {here}/logs/, one file a part
settings   {here}/driftline.toml; after a change: {local} restart worker-1
customers  {driftline} customer hh-1500, or customers export
alerts     {driftline} alerts --from-beginning
rules      {local} status, or Prometheus at /alerts; each names its heading in docs/runbook.md

A bad night: {local}
  kill worker-1     pause worker-2     kill kafka     pause redis     pause shop     empty-redis     garbage
  and back: restart NAME after a kill, resume NAME after a pause.
To end it all: {"make down" if where == ROOT / ".run" else f"{local} down"}"""


def send_garbage(where: Path, count: int) -> None:
    """Records that cannot be used, a few kinds of them, over all partitions."""
    settings = load(stack.settings_file(where), environment={})
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    for number in range(count):
        producer.send(settings.topics.clickstream, GARBAGE[number % len(GARBAGE)], partition=number % stack.PARTITIONS)
    producer.flush()
    producer.close()


if __name__ == "__main__":
    sys.exit(main())
