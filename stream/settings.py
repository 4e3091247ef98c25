"""Every setting: name, default, unit and meaning in one place. docs/configuration.md is compared with it by a test.

Settings come from defaults, then a TOML file, then environment variables `DRIFTLINE_SECTION__KEY`. They are
validated whole before anything starts; all faults are reported at once, each with its path and the nearest known key.
"""

import difflib
import hashlib
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import available_timezones

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from stream.errors import SettingsError
from stream.events import EventRules

ENVIRONMENT_PREFIX = "DRIFTLINE_"
MAX_FILE_BYTES = 65_536
"""Settings are a few kilobytes; tomllib takes 14 s for 400 kB of dotted keys."""
MOST = 10**10
"""Of any number without a limit of its own: in days it is still a time in milliseconds."""


class Section(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _known_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"is no time zone of the IANA database; nearest: {_nearest(name, available_timezones())}")
    return name


def _topic_safe(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,60}", name):
        raise ValueError("takes 1 to 60 letters, digits, dots, dashes and underscores")
    return name


Name = Annotated[str, AfterValidator(_topic_safe)]
RESERVED = ("trainer", "backfill", "forget", "repartition", "rewind")
"""Names under which parts of Driftline write: a worker of that name would be fenced by them."""


def _redis_url(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
        usable = parts.scheme in ("redis", "rediss", "unix") and "@" not in parts.path + parts.query + parts.fragment
        for place in parts.netloc.rpartition("@")[2].split(","):
            port = urlsplit(f"//{place}").port
            usable = usable and (port is None or port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("write redis://USER:PASSWORD@HOST:PORT/DB, with / # ? @ in user and password percent-encoded")
    return url


def _default_instance() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:60] or "worker"


class Application(Section):
    """One shop."""

    name: Name = Field("shop", description="prefix of the group, our topics, Redis keys and ids; one per shop")
    instance: Name = Field(
        default_factory=_default_instance, description="a stable name for this worker, unlike that of any other"
    )
    currency: str = Field("USD", pattern="^[A-Z]{3}$", description="ISO 4217 code in which amounts are counted")
    timezone: Annotated[str, AfterValidator(_known_zone)] = Field(
        "UTC", description="IANA zone of the shop: hours and weekends are local"
    )
    rates: dict[Annotated[str, Field(pattern="^[A-Z]{3}$")], Annotated[float, Field(gt=0, le=1e9)]] = Field(
        {}, description="one unit of another currency in units of `currency`; amounts in any other count as missing"
    )


class Kafka(Section):
    """The brokers."""

    bootstrap_servers: str = Field("127.0.0.1:9092", min_length=3, description="host:port, comma-separated")
    client: Literal["kafka-python", "librdkafka"] = Field(
        "kafka-python",
        description="what a worker reads its inputs and commits with; librdkafka takes less CPU and needs "
        "`pip install '.[librdkafka]'`",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how to talk to the brokers"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="needed where security_protocol begins with SASL"
    )
    sasl_username: str | None = Field(None, description="user name for SASL")
    sasl_password: SecretStr | None = Field(None, description="password for SASL; better set by environment variable")
    ssl_cafile: str | None = Field(
        None, description="file of the authority that signed the brokers' certificates; by default the system's"
    )
    ssl_certfile: str | None = Field(
        None, description="file of a client's certificate, where the brokers ask for one; PEM, with its chain"
    )
    ssl_keyfile: str | None = Field(
        None, description="file of that certificate's key, without a password; by default it is in ssl_certfile"
    )
    partitioner: Literal["murmur2", "crc32"] = Field(
        "murmur2",
        description="how the producers of the input topics place keys: murmur2 (Java, kafka-python) or "
        "crc32 (librdkafka)",
    )
    session_timeout_s: float = Field(10.0, ge=6, le=300, description="a worker silent for this long loses its tasks, s")
    transaction_timeout_s: float = Field(10.0, ge=1, le=60, description="an open transaction is aborted after, s")
    commit_timeout_s: float = Field(
        20.0,
        ge=2,
        le=40,
        description="watchdog: a commit without answer is abandoned, s; on librdkafka 3 s after its connection failed",
    )
    leave_on_stop: bool = Field(
        False,
        description="a worker that is stopped gives up its tasks at once: for workers that do not come back under the "
        "same name; otherwise they wait for it until session_timeout_s",
    )
    start_at: Literal["earliest", "latest"] = Field(
        "earliest", description="where a task without committed offsets begins"
    )


class Redis(Section):
    """The store of customers."""

    url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="redis://, rediss:// or unix://; a password in it is masked"
    )
    kind: Literal["server", "sentinel", "cluster"] = Field(
        "server",
        description="what url leads to: one server, sentinels (who know the primary), or nodes of a cluster; of the "
        "last two it may name several, HOST:PORT,HOST:PORT",
    )
    primary: str = Field("mymaster", description="the name that the sentinels have for the primary")
    ssl_cafile: str | None = Field(
        None, description="file of the authority that signed the server's certificate; by default the system's"
    )
    ssl_certfile: str | None = Field(
        None, description="file of a client's certificate, where the server asks for one; PEM, with its chain"
    )
    ssl_keyfile: str | None = Field(
        None, description="file of that certificate's key, without a password; by default it is in ssl_certfile"
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="a call without answer fails after, s")


class Topics(Section):
    """Names of topics. Ours are prefixed with the application's name unless named here."""

    clickstream: Name = Field("clickstream", description="input: views, searches, carts")
    purchases: Name = Field("purchases", description="input: orders and refunds; events of any kind may come in either")
    alerts: Name | None = Field(None, description="output: alerts; default NAME.alerts")
    dead_letters: Name | None = Field(
        None, description="output: records that cannot be used; default NAME.dead-letters"
    )
    journal: Name | None = Field(None, description="ours: one record per task and tick; default NAME.journal")
    models: Name | None = Field(None, description="ours, compacted: model versions; default NAME.models")


class Tick(Section):
    """One turn of the worker's loop."""

    max_events: int = Field(5_000, ge=1, le=100_000, description="most events of one task in one tick")
    max_wait_ms: int = Field(100, ge=1, le=1_000, description="longest that the broker gathers events, and that a turn waits for any, ms")  # fmt: skip
    max_span_hours: float = Field(6.0, gt=0, le=168, description="most stream time one tick may cover, h")
    max_wakes: int = Field(5_000, ge=1, le=100_000, description="most silent customers looked at in one tick of a task")
    idle_after_s: float = Field(30.0, ge=0, le=86_400, description="a topic at its end and silent for this long is not waited for, s")  # fmt: skip
    live_within_s: float = Field(3_600.0, gt=0, description="events this close to the wall clock make the stream live, s")  # fmt: skip
    max_ahead_s: float = Field(300.0, ge=0, description="an event time further ahead of the record's is clamped, s")


class Alerts(Section):
    """When an alert is raised and when it is held back."""

    anomaly_one_in: float = Field(2_000.0, ge=10, description="an event rarer than one in this many is an anomaly")
    anomaly_cooldown_hours: float = Field(72.0, ge=0, description="no second anomaly alert of a customer within, h")
    anomaly_min_events: int = Field(10, ge=0, description="events of a customer before anomalies of theirs are alerted")
    segment_dwell_days: float = Field(
        7.0, ge=0, description="a new segment must hold this long before it is alerted, d"
    )
    segment_dwell_gaps: float = Field(2.0, ge=0, le=10, description="and for so many of the customer's usual gaps between orders, up to 45 days")  # fmt: skip
    segment_margin: float = Field(0.2, ge=0, le=1, description="how clearly the new segment must be the nearer one, 0 to 1")  # fmt: skip
    segment_min_orders: int = Field(3, ge=1, description="purchase occasions before a customer is given a segment")
    churn_enter: float = Field(0.5, gt=0, lt=1, description="churn risk is high from this probability on")
    churn_clear: float = Field(0.3, gt=0, lt=1, description="and no longer high below this one")
    churn_risen: float = Field(
        0.5,
        ge=0,
        le=10,
        description="and only where its logit has risen by this since the last order; 0 = rare buyers, always at risk, are alerted too",
    )
    max_per_day: int = Field(1_000, ge=1, description="most alerts of one kind, task and day of stream time")
    wave_share: float = Field(0.02, gt=0, le=1, description="a share of customers crossing in an hour that is a lost feed, not churn")  # fmt: skip
    wave_min: int = Field(25, ge=1, description="fewer crossings in an hour than this are never a wave")


class Customers(Section):
    """How long customers are remembered."""

    retention_days: float = Field(730.0, ge=1, description="a customer silent for this long is forgotten, d")
    anonymous_retention_days: float = Field(30.0, ge=1, description="the same for anonymous customers, d")
    cache_rows: int = Field(200_000, ge=1_000, description="rows kept in memory per task (0.93 kB each)")


class Models(Section):
    """The trainer."""

    horizon_days: float = Field(28.0, ge=1, le=365, description="churn = no order within this many days")
    segments: int = Field(6, ge=2, le=20, description="number of segments")
    reference_events: int = Field(
        1_000,
        ge=100,
        le=20_000,
        description="events of the first reference; anomalies are scored from the model version on that has it",
    )
    first_customers: int = Field(300, ge=50, le=2_000, description="customers with orders before segments are formed")
    min_labels: int = Field(50, ge=20, description="matured examples before churn risk is alerted")
    publish_min_events: int = Field(2_500, ge=100, description="events learned between the first versions")
    publish_max_events: int = Field(100_000, ge=100, description="events learned between later versions")
    publish_max_days: float = Field(7.0, gt=0, le=365, description="a version comes at least this often where anything is learned, d of stream time")  # fmt: skip
    seed: int = Field(42, ge=0, description="seed of all models")


class Journal(Section):
    """The journal topic."""

    retention_days: float = Field(7.0, ge=1, le=90, description="retention of the journal; every row is written again within half of it, d")  # fmt: skip
    schema_version: int | None = Field(None, ge=1, le=3, description="write rows and journal in this schema; by default a task goes on in the one it is found in. Raise it once every worker runs this release; it is never lowered")  # fmt: skip


class DeadLetters(Section):
    """When bad input is a misconfiguration."""

    max_share: float = Field(0.5, gt=0, le=1, description="the worker stops when more than this share of the last records is unusable")  # fmt: skip
    window: int = Field(1_000, ge=10, description="number of last records that share is taken over")


class Http(Section):
    """Metrics and health."""

    host: str = Field("127.0.0.1", description="address that /metrics, /livez and /readyz are served on")
    port: int = Field(9464, ge=0, le=65_535, description="and the port; 0 = any free one")


class Log(Section):
    """Logs on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level that is written")
    format: Literal["json", "text"] = Field("json", description="one JSON object a line, or text for a person")
    customers: Literal["none", "hashed", "plain"] = Field(
        "hashed", description="how logs and errors name customers; plain also shows what was found in a dead letter"
    )


class Settings(Section):
    """All settings of a worker."""

    application: Application = Application()
    kafka: Kafka = Kafka()
    redis: Redis = Redis()
    topics: Topics = Topics()
    tick: Tick = Tick()
    alerts: Alerts = Alerts()
    customers: Customers = Customers()
    models: Models = Models()
    journal: Journal = Journal()
    dead_letters: DeadLetters = DeadLetters()
    http: Http = Http()
    log: Log = Log()

    @property
    def inputs(self) -> tuple[str, str]:
        """The input topics."""
        return self.topics.clickstream, self.topics.purchases

    def topic(self, kind: Literal["alerts", "dead_letters", "journal", "models"]) -> str:
        """The name of one of our topics."""
        named: str | None = getattr(self.topics, kind)
        return named or f"{self.application.name}.{kind.replace('_', '-')}"

    @property
    def event_rules(self) -> EventRules:
        """What records are decoded by."""
        application = self.application
        return EventRules(application.currency, application.rates, round(self.tick.max_ahead_s * 1000))

    @property
    def config_text(self) -> bytes:
        """The settings a tick's result depends on, as canonical JSON; its hash is stamped on journal and alerts."""
        parts = self.model_dump(mode="json", include={"application", "alerts", "customers", "models", "journal"})
        del parts["application"]["instance"], parts["customers"]["cache_rows"]
        parts["partitioner"] = self.kafka.partitioner
        parts["max_ahead_s"] = self.tick.max_ahead_s
        parts["topics"] = self.inputs
        return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits of `config_text`."""
        return hashlib.blake2b(self.config_text, digest_size=6).hexdigest()

    @classmethod
    def from_config_text(cls, text: bytes) -> "Settings":
        """Settings whose ticks come out as those of the configuration with this text."""
        parts = orjson.loads(text)
        clickstream, purchases = parts.pop("topics")
        return parse(
            {
                "kafka": {"partitioner": parts.pop("partitioner")},
                "tick": {"max_ahead_s": parts.pop("max_ahead_s")},
                "topics": {"clickstream": clickstream, "purchases": purchases},
                **parts,
            }
        )

    @property
    def shown_redis_url(self) -> str:
        """The Redis URL without its password, for logs and errors."""
        parts = urlsplit(self.redis.url.get_secret_value())
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from a TOML file and the environment.

    Raises:
        SettingsError: listing every fault with its path and the nearest known key.
    """
    tables = _from_file(path) if path else {}
    for name, value in _from_environment(os.environ if environment is None else environment).items():
        section, key = name
        table = tables.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = value
    return parse(tables)


def parse(tables: Mapping[str, Any]) -> Settings:
    """Settings from nested tables, as they stand in the file."""
    faults: list[str] = []
    settings = Settings()
    try:
        settings = Settings.model_validate(tables)
        faults += _beyond(settings)
    except ValidationError as error:
        faults += [_fault(fault) for fault in error.errors(include_url=False)]
    if faults:
        raise SettingsError("the settings cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    faults = list(_contradictions(settings))
    if faults:
        raise SettingsError("the settings contradict each other:\n" + "\n".join(f"  {fault}" for fault in faults))
    return settings


def _beyond(settings: Settings) -> Iterator[str]:
    for section, table in settings:
        for key, value in table:
            if isinstance(value, int | float) and value > MOST:
                yield f"{section}.{key}: takes at most {MOST:,}, found {_shown(value)}"


def _contradictions(settings: Settings) -> list[str]:
    faults = []
    if settings.alerts.churn_clear >= settings.alerts.churn_enter:
        faults.append("alerts.churn_clear must lie below alerts.churn_enter, else customers flap between the two")
    if settings.kafka.security_protocol.startswith("SASL") and not (
        settings.kafka.sasl_mechanism and settings.kafka.sasl_username and settings.kafka.sasl_password
    ):
        faults.append("kafka.security_protocol is SASL: set sasl_mechanism, sasl_username and sasl_password")
    for section, files, speaks, how in (
        (
            "kafka",
            settings.kafka,
            settings.kafka.security_protocol.endswith("SSL"),
            "security_protocol = SASL_SSL or SSL",
        ),
        ("redis", settings.redis, settings.redis.url.get_secret_value().startswith("rediss:"), "url = rediss://..."),
    ):
        named = [name for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile") if getattr(files, name)]
        if named and not speaks:
            # Who names an authority means to be safe, and would not be.
            faults.append(f"{section}.{named[0]} is set and TLS is not spoken: set {section}.{how}")
        if files.ssl_keyfile and not files.ssl_certfile:
            faults.append(f"{section}.ssl_keyfile is set without {section}.ssl_certfile")
    address = urlsplit(settings.redis.url.get_secret_value())
    if settings.redis.kind == "server" and "," in address.netloc:
        faults.append("redis.url names several servers: set redis.kind to sentinel or cluster, or name one")
    if settings.redis.kind != "server" and address.scheme == "unix":
        faults.append(f"redis.kind is {settings.redis.kind} and redis.url a path: write redis://HOST:PORT")
    if settings.redis.kind == "cluster" and address.path not in ("", "/", "/0"):
        faults.append(f"redis.url names database {address.path[1:]}; a cluster has only 0")
    if settings.application.instance in RESERVED:
        faults.append(f"application.instance is {settings.application.instance}, which a part of Driftline goes by")
    if settings.topics.clickstream == settings.topics.purchases:
        faults.append("topics.clickstream and topics.purchases are the same topic; name two")
    if settings.models.publish_max_events < settings.models.publish_min_events:
        faults.append("models.publish_max_events is below models.publish_min_events")
    return faults


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise SettingsError(f"the settings file {path} has more than {MAX_FILE_BYTES} bytes; is it another file?")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # tomllib lets those of Python's numbers through
        raise SettingsError(f"the settings file {path} is not TOML: {str(error)[:200]}") from None
    except RecursionError:
        raise SettingsError(f"the settings file {path} nests its tables too deeply; they go two levels down") from None


def _from_environment(environment: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    found = {}
    for name, value in environment.items():
        meant = _MISSPELT.get(name)
        if meant:
            raise SettingsError(f"the environment variable {name} is not read; did you mean {meant}?")
        section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if name.startswith(ENVIRONMENT_PREFIX) and key:
            try:
                (name + value).encode()
            except UnicodeEncodeError:
                raise SettingsError(f"the environment variable {ascii(name)[:100]} is not UTF-8; set it anew") from None
            # rates is the one table among the keys: it comes as JSON.
            found[section, key] = _json_or_text(value) if (section, key) == ("application", "rates") else value
    return found


def _json_or_text(value: str) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _fault(fault: Any) -> str:
    path = [str(part)[:100] for part in fault["loc"]]
    where = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        return f"{where}: no such setting; nearest: {'.'.join([*path[:-1], _nearest(path[-1], known)])}"
    secret = any(word in path[-1] for word in ("password", "url"))
    found = (
        f"found {_shown(fault['input'])}" if len(path) > 1 else f"found {type(fault['input']).__name__}, not a table"
    )
    shown = "" if secret else f", {found}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}{shown}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # an integer may have more digits than Python writes
        return f"{type(value).__name__} too large to be shown"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _known_keys(path: list[str]) -> list[str]:
    if not path:
        return list(Settings.model_fields)
    section = Settings.model_fields.get(path[0])
    kind = section.annotation if section else None
    kind = kind if isinstance(kind, type) else next(iter(get_args(kind)), None)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, Section) else []


def _nearest(name: str, known: Any) -> str:
    return next(iter(difflib.get_close_matches(name[:100], list(known), 1, 0.0)), "none")


_MISSPELT = {
    f"{ENVIRONMENT_PREFIX}{section}_{key}".upper(): f"{ENVIRONMENT_PREFIX}{section}__{key}".upper()
    for section in Settings.model_fields
    for key in _known_keys([section])
}
"""Names with one underscore where two are needed. Others that begin alike (Kubernetes sets some) are left alone."""
