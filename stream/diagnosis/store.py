"""Judging Redis."""

import re
from collections.abc import Iterator, Mapping

from stream.diagnosis import Finding, counted, lasting, listed, ok, size, warning, wrong
from stream.diagnosis.facts import RedisFacts, Rights

SLOW_PING_S = 0.05
FULL_SHARE, FULLER_SHARE = 0.8, 0.95
"""Memory used, of the most allowed, that is a warning, and that is wrong."""


def server(facts: RedisFacts, url: str) -> Iterator[Finding]:
    """Which server, whether it can be written, how fast it answers."""
    info = facts.info
    product = "Valkey" if "valkey_version" in info else "Redis"
    release = info.get("valkey_version", info.get("redis_version", "of unknown version"))
    if info.get("role", "master") != "master":
        yield wrong(f"{url} is a {info['role']}: it cannot be written", "set redis.url to the primary")
    if info.get("loading"):
        yield wrong(f"{url} is loading its data", "wait until it is done")
    if facts.ping_s > SLOW_PING_S:
        yield warning(
            f"a ping takes {facts.ping_s * 1000:.0f} ms", "look for a slow network or a busy server (SLOWLOG)"
        )
    yield ok(f"{product} {release} at {url}, a ping takes {facts.ping_s * 1000:.2f} ms")


def memory(info: Mapping[str, object], policy: str | None) -> Iterator[Finding]:
    """Whether customers may be evicted or no longer be written."""
    policy = policy or str(info.get("maxmemory_policy") or "")
    if policy and policy != "noeviction":
        yield wrong(
            f"maxmemory-policy is {policy}: Redis would forget customers at random",
            "CONFIG SET maxmemory-policy noeviction, and in its configuration",
        )
    used, most = _number(info.get("used_memory")), _number(info.get("maxmemory"))
    share = used / most if most else 0.0
    if share >= FULL_SHARE:
        make = wrong if share >= FULLER_SHARE else warning
        yield make(f"{size(used)} used of {size(most)} ({share:.0%})", "raise maxmemory: a full Redis refuses writes")
    elif not policy:
        yield warning("it does not say its maxmemory-policy", "make sure that it is noeviction")
    elif policy == "noeviction":
        yield ok(f"{size(used)} used of {size(most) if most else 'no limit'}, noeviction")


def persistence(info: Mapping[str, object], saves: str | None) -> Iterator[Finding]:
    """Whether what is written survives a restart, and whether the disk takes it."""
    on = bool(_number(info.get("aof_enabled")))
    for what, key in (("append-only file", "aof_last_write_status"), ("snapshot", "rdb_last_bgsave_status")):
        if info.get(key, "ok") != "ok":
            yield wrong(f"the last write of the {what} failed", "look at Redis's log and at its disk")
    if on:
        yield ok("append-only file is on")
    elif saves:
        yield ok(f"snapshots are on (save {saves}); what they lack is replayed from the journal")
    elif saves is None:
        yield warning("no append-only file; it does not say whether snapshots are on", "make sure that one of them is")
    else:
        yield warning(
            "nothing is kept on disk: after a restart Redis is rebuilt from the journal whole",
            "turn on appendonly, unless that may take its time",
        )


def rights(found: Rights) -> Iterator[Finding]:
    """What the worker's commands need and this user may not do."""
    if found.denied:
        yield wrong(
            f"user {found.user!r} may not: {listed(found.denied)}",
            "grant the commands and the keys (ACL SETUSER), see docs/security.md",
        )
    elif found.unasked:
        yield warning(f"user {found.user!r}: {found.unasked}", "look at ACL LIST as an administrator")
    else:
        yield ok(f"user {found.user!r} may do what a worker does")


def customers(counts: Mapping[int, int], missing: int, asked: int) -> Iterator[Finding]:
    """How many there are; `missing` of `asked` sampled ones have an entry in the index and no row."""
    if missing:
        yield wrong(
            f"{missing} of {asked} sampled customers have no row: something evicts or deletes keys",
            "find what does; empty this application's keys and restart, so that they are rebuilt from the journal",
        )
    keys = sum(counts.values()) + sum(1 + (count > 0) for count in counts.values())
    yield ok(f"{counted(sum(counts.values()), 'customer')} in {counted(len(counts), 'task')}, {counted(keys, 'key')}")


def clock(ahead_s: float, tolerated_s: float) -> Finding:
    """Redis's clock against this machine's."""
    if abs(ahead_s) > tolerated_s:
        side = "ahead of" if ahead_s > 0 else "behind"
        return warning(f"Redis's clock is {lasting(abs(ahead_s))} {side} this machine's", "set both by NTP")
    return ok(f"Redis's clock and this machine's differ by {abs(ahead_s) * 1000:.1f} ms")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) or re.fullmatch(r"\d+", str(value)) else 0.0  # type: ignore[arg-type]
