"""The parts of the stack, in the order in which they start, and how each says that it is well."""

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from deploy.local.part import ROOT, Failed, Part
from tests.servers import KafkaServer, RedisServer
from tests.servers.server import free_port

NAMES = ("kafka", "redis", "worker-1", "worker-2", "crm", "shop", "prometheus")
APPLICATION = "shop"
PARTITIONS = 4
READY_TIMEOUT_S = 90.0
ALERT_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 2.0
POLL_S = 0.2

Say = Callable[[str], None]


def up(run: Path, speed: float, say: Say) -> int:
    """Start everything; returns the number of alerts the CRM has got once it has some, 0 if it waited in vain.

    Raises:
        Failed: a part does not start. Nothing is left behind then.
    """
    if run.exists():
        if any(part.alive for part in parts(run)):
            raise Failed(f"it is up already, in {run}: `make status` shows it, `make down` ends it")
        down(run)  # left over from a machine that went down
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is ended
    try:
        for folder in ("parts", "logs", "data/kafka", "data/redis", "data/prometheus"):
            (run / folder).mkdir(parents=True)
        _servers(run, say)
        _workers(run, say)
        _edges(run, speed)
        _prometheus(run, say)
        say("waiting for the first alert")
        return _first_alerts(run)
    except BaseException:
        down(run)
        raise


def down(run: Path) -> list[str]:
    """End everything and remove `run`; returns the names of the parts that were running."""
    if not run.exists():
        return []
    if not (run / "parts").is_dir():
        raise Failed(f"{run} was not made by `up`: it is left as it is")
    running = [part for part in parts(run) if part.alive]
    for part in reversed(running):
        part.kill()  # what they keep goes with them, so there is nothing to end in order
    shutil.rmtree(run)
    return [part.name for part in running]


def parts(run: Path) -> list[Part]:
    """The parts that were ever started, in that order."""
    return [Part.read(run, name) for name in NAMES if (run / "parts" / f"{name}.json").exists()]


def part(run: Path, name: str) -> Part:
    """One part, by its name."""
    found = {each.name: each for each in parts(run)}
    if not found:
        raise Failed(f"nothing is up in {run}; start it by `make up`")
    if name not in found:
        raise Failed(f"no part is called {name!r}; there are {', '.join(found)}")
    return found[name]


def fault(part: Part) -> str | None:
    """None while it is well, otherwise what is not."""
    if not part.alive:
        last = (part.last_lines(1) or [""])[0]
        # What we write last is no JSON; a server's log, or one that breaks off, has no last word.
        spoke = part.name not in ("kafka", "redis") and last[:1] not in ("", "{")
        return f"ended; its last line: {last[:200]}" if spoke else "ended without a last word: killed?"
    if part.paused:
        return "paused (SIGSTOP)"
    if part.name == "kafka":
        return None if KafkaServer(port=_port(part)).answers() else "does not answer"
    if part.name == "redis":
        return None if RedisServer(port=_port(part)).answers() else "does not answer"
    if part.name.startswith("worker"):
        return _get_fault(f"http://{part.address}/readyz")
    if part.name == "prometheus":
        return _get_fault(f"http://{part.address}/-/ready")
    return None


def firing(run: Path) -> Iterator[tuple[str, str, str]]:
    """State, summary and page of the runbook of every rule that fires or soon will, by Prometheus."""
    address = next((part.address for part in parts(run) if part.name == "prometheus"), None)
    if address is None:
        return
    with suppress(OSError, ValueError):
        for alert in get(f"http://{address}/api/v1/alerts")["data"]["alerts"]:
            yield alert["state"], alert["annotations"]["summary"], alert["annotations"]["runbook"]


def delivered(run: Path) -> int:
    """Alerts that the CRM has in its database."""
    path = run / "data" / "crm.sqlite"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as db, suppress(sqlite3.OperationalError):  # the table comes a moment later
        return int(db.execute("SELECT count(*) FROM actions").fetchone()[0])
    return 0


def get(url: str) -> Any:
    """A JSON document."""
    with urlopen(url, timeout=ANSWER_TIMEOUT_S) as answer:
        return json.load(answer)


def settings_file(run: Path) -> Path:
    """What the workers, and every command of `driftline`, take their settings from."""
    return run / "driftline.toml"


def _servers(run: Path, say: Say) -> None:
    kafka, redis = KafkaServer(port=_preferred(9092)), RedisServer(port=_preferred(6379), appendonly=True)
    for server, name in ((kafka, "kafka"), (redis, "redis")):
        command, origin = server.command(run / "data" / name)
        say(f"starting {name} ({origin})")
        Part(run, name, command, {}, f"127.0.0.1:{server.port}").start()
    _wait_until_well(run, "kafka", "redis")
    settings_file(run).write_text(
        f'[application]\nname = "{APPLICATION}"\ntimezone = "America/New_York"\n\n'
        f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n\n[redis]\nurl = "{redis.url}"\n',
        "utf-8",
    )


def _workers(run: Path, say: Say) -> None:
    say("creating the topics, starting two workers")
    driftline = [sys.executable, "-m", "stream", "--config", str(settings_file(run))]
    made = subprocess.run(
        [*driftline, "topics", "create", "--partitions", str(PARTITIONS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise Failed(f"the topics cannot be created: {made.stderr.strip()}")
    for name, preferred in (("worker-1", 9464), ("worker-2", 9465)):
        port = _preferred(preferred)
        environment = {"DRIFTLINE_APPLICATION__INSTANCE": name, "DRIFTLINE_HTTP__PORT": str(port)}
        Part(run, name, [*driftline, "run"], environment, f"127.0.0.1:{port}").start()


def _edges(run: Path, speed: float) -> None:
    kafka = part(run, "kafka").address
    python = [sys.executable, "-u"]
    environment = {"PYTHONPATH": str(ROOT)}
    crm = [*python, "examples/crm.py", "--bootstrap-servers", kafka, "--topic", f"{APPLICATION}.alerts"]
    Part(run, "crm", [*crm, "--db", str(run / "data" / "crm.sqlite")], environment).start()
    feed = [*python, "deploy/shop/feed.py", "--bootstrap-servers", kafka, "--speed", f"{speed:g}"]
    Part(run, "shop", feed, environment).start()


def _prometheus(run: Path, say: Say) -> None:
    program = shutil.which("prometheus")
    if program is None:
        say("NO PROMETHEUS: none is on PATH, so no alert rule is watched (Debian: apt-get install prometheus)")
        _wait_until_well(run, "worker-1", "worker-2")
        return
    workers = [part(run, name).address for name in ("worker-1", "worker-2")]
    config = run / "prometheus.yml"
    rules = ROOT / "deploy" / "prometheus" / "rules.yml"
    config.write_text(
        "global: {scrape_interval: 2s, evaluation_interval: 5s}\n"
        f"rule_files: [{json.dumps(str(rules))}]\n"
        f"scrape_configs: [{{job_name: driftline, static_configs: [{{targets: {json.dumps(workers)}}}]}}]\n",
        "utf-8",
    )
    address = f"127.0.0.1:{_preferred(9090)}"
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={run / 'data' / 'prometheus'}"]
    Part(run, "prometheus", [*command, f"--web.listen-address={address}"], {}, address).start()
    _wait_until_well(run, "worker-1", "worker-2", "prometheus")


def _wait_until_well(run: Path, *names: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    for each in (part(run, name) for name in names):
        while why := fault(each):
            if not each.alive or time.monotonic() > deadline:
                raise Failed("\n".join([f"{each.name}: {why}", *each.last_lines(15)]))
            time.sleep(POLL_S)


def _first_alerts(run: Path) -> int:
    deadline = time.monotonic() + ALERT_TIMEOUT_S
    while not (count := delivered(run)) and time.monotonic() < deadline:
        for each in parts(run):
            if not each.alive and each.name != "shop":
                raise Failed("\n".join([f"{each.name} has ended", *each.last_lines(15)]))
        time.sleep(POLL_S)
    return count


def _port(part: Part) -> int:
    return int(part.address.rpartition(":")[2])


def _get_fault(url: str) -> str | None:
    try:
        with urlopen(url, timeout=ANSWER_TIMEOUT_S):
            return None
    except HTTPError as error:
        return error.read().decode().strip()
    except OSError:
        return "does not answer"


def _preferred(port: int) -> int:
    """`port` where it is free, as that is the one people know; otherwise any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    return free_port()
