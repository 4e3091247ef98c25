from pathlib import Path
from typing import Any

import orjson
import pytest

from stream.cli import run
from stream.errors import Misconfigured, SettingsError
from stream.processing.version import warming
from stream.settings import Settings, load, parse

SECRET = "hunter2"


def faults(tables: dict[str, Any]) -> list[str]:
    """The lines of the error, one per fault, without the heading."""
    with pytest.raises(SettingsError) as caught:
        parse(tables)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def written(folder: Path, text: str) -> Path:
    path = folder / "driftline.toml"
    path.write_text(text, "utf-8")
    return path


# Where settings come from


def test_without_a_file_or_environment_the_defaults_hold() -> None:
    settings = load(None, {})
    assert settings == Settings()
    assert [settings.topic(kind) for kind in ("alerts", "dead_letters", "journal", "models")] == [
        "shop.alerts",
        "shop.dead-letters",
        "shop.journal",
        "shop.models",
    ]
    assert settings.inputs == ("clickstream", "purchases")


def test_the_environment_goes_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, '[application]\nname = "a"\ncurrency = "EUR"\n[tick]\nmax_events = 7\n')
    settings = load(path, {"DRIFTLINE_APPLICATION__NAME": "b", "DRIFTLINE_TICK__MAX_WAIT_MS": "9", "PATH": "/bin"})
    assert (
        settings.application.name,
        settings.application.currency,
        settings.tick.max_events,
        settings.tick.max_wait_ms,
        settings.tick.max_wakes,
    ) == ("b", "EUR", 7, 9, 5_000)


def test_rates_come_from_the_environment_as_json() -> None:
    settings = load(None, {"DRIFTLINE_APPLICATION__RATES": '{"EUR": 1.08}'})
    assert settings.application.rates == {"EUR": 1.08}


def test_our_topics_take_the_application_s_name_unless_they_are_named() -> None:
    settings = parse({"application": {"name": "toys"}, "topics": {"alerts": "crm"}})
    assert [settings.topic(kind) for kind in ("alerts", "journal")] == ["crm", "toys.journal"]


@pytest.mark.parametrize("text", ["[application", "\x00", "a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError, match="is not TOML") as caught:
        load(path, {})
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[application]\nname = "\xe9"\n')
    with pytest.raises(SettingsError, match="is not TOML"):
        load(path, {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file"):
        load(tmp_path / "missing.toml", {})


# Faults


def test_all_faults_are_reported_at_once_with_their_paths_and_the_nearest_keys() -> None:
    found = faults(
        {
            "aplication": {"name": "a"},
            "application": {"name": "no blanks please", "currency": "usd", "timezone": "Europe/Londn"},
            "tick": {"max_events": 0, "max_event": 5},
            "http": {"port": "many"},
            "alerts": {"churn_enter": float("nan")},
        }
    )
    assert sorted(line.split(":")[0] for line in found) == [
        "alerts.churn_enter",
        "aplication",
        "application.currency",
        "application.name",
        "application.timezone",
        "http.port",
        "tick.max_event",
        "tick.max_events",
    ]
    said = "\n".join(found)
    for part in (
        "nearest: application",
        "nearest: tick.max_events",
        "nearest: Europe/London",
        "found 'no blanks please'",
        "found 'many'",
    ):
        assert part in said


def test_a_misspelt_environment_variable_is_a_fault() -> None:
    with pytest.raises(SettingsError, match=r"tick\.max_evnts: no such setting; nearest: tick\.max_events"):
        load(None, {"DRIFTLINE_TICK__MAX_EVNTS": "5"})


@pytest.mark.parametrize(
    ("tables", "path"),
    [
        ({"alerts": {"churn_enter": 0.5, "churn_clear": 0.5}}, "alerts.churn_clear"),
        ({"kafka": {"security_protocol": "SASL_SSL", "sasl_username": "u"}}, "kafka.security_protocol"),
        ({"topics": {"clickstream": "x", "purchases": "x"}}, "topics.purchases"),
        ({"application": {"instance": "rewind"}}, "application.instance"),
        ({"redis": {"url": "redis://a:1,b:2"}}, "redis.kind"),
        ({"redis": {"url": "unix:///redis.sock", "kind": "sentinel"}}, "redis.kind"),
        ({"redis": {"url": "redis://a:1,b:2/3", "kind": "cluster"}}, "redis.url"),
        ({"models": {"publish_min_events": 9_000, "publish_max_events": 8_000}}, "models.publish_max_events"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tables: dict[str, Any], path: str) -> None:
    found = faults(tables)
    assert len(found) == 1
    assert path in found[0]


def test_all_contradictions_are_reported_at_once() -> None:
    found = faults({"alerts": {"churn_clear": 0.9}, "topics": {"clickstream": "x", "purchases": "x"}})
    assert len(found) == 2


@pytest.mark.parametrize("models", [{"first_customers": 3_000}, {"reference_events": 30_000}])
def test_settings_that_are_accepted_give_models(models: dict[str, int]) -> None:
    try:
        settings = parse({"models": models})
    except SettingsError:
        return
    assert warming(settings.models).number == 0


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().tick.max_events = 5  # type: ignore[misc]


# Secrets


def secretive() -> Settings:
    return parse(
        {
            "redis": {"url": f"rediss://user:{SECRET}@redis.example:6380/2"},
            "kafka": {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "PLAIN",
                "sasl_username": "u",
                "sasl_password": SECRET,
            },
        }
    )


def test_secrets_do_not_show() -> None:
    settings = secretive()
    shown = [
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        str(settings.model_dump()),
        settings.config_text,
    ]
    assert [SECRET in str(text) for text in shown] == [False] * 5


def test_secrets_can_be_read_by_whoever_connects() -> None:
    settings = secretive()
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == SECRET
    assert settings.redis.url.get_secret_value() == f"rediss://user:{SECRET}@redis.example:6380/2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"rediss://user:{SECRET}@redis.example:6380/2", "rediss://redis.example:6380/2"),
        (f"redis://:{SECRET}@h", "redis://h"),
        (f"redis://:p@{SECRET}@h/0", "redis://h/0"),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        (f"redis://u:{SECRET}@a:1,b:2/0", "redis://a:1,b:2/0"),
    ],
)
def test_the_redis_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert parse({"redis": {"url": url, "kind": "sentinel" if "," in url else "server"}}).shown_redis_url == shown


def test_a_password_in_the_redis_url_s_query_is_not_shown() -> None:
    assert SECRET not in parse({"redis": {"url": f"unix:///redis.sock?db=1&password={SECRET}"}}).shown_redis_url


@pytest.mark.parametrize(
    "tables",
    [
        {"redis": {"url": [SECRET]}},
        {"redis": {"url": {"password": SECRET}}},
        {"kafka": {"sasl_password": [SECRET]}},
        {"kafka": {"sasl_passwort": SECRET}},
        {"redis": f"redis://:{SECRET}@h"},
    ],
)
def test_a_secret_is_not_repeated_in_an_error(tables: dict[str, Any]) -> None:
    assert SECRET not in "\n".join(faults(tables))


# The configuration hash


@pytest.mark.parametrize(
    "tables",
    [
        {"application": {"name": "other"}},
        {"application": {"currency": "EUR"}},
        {"application": {"timezone": "Europe/Paris"}},
        {"application": {"rates": {"EUR": 1.1}}},
        {"alerts": {"anomaly_one_in": 500}},
        {"alerts": {"max_per_day": 5}},
        {"alerts": {"wave_min": 26}},
        {"models": {"seed": 7}},
        {"models": {"horizon_days": 30}},
        {"customers": {"retention_days": 100}},
        {"journal": {"retention_days": 8}},
        {"topics": {"clickstream": "clicks"}},
        {"kafka": {"partitioner": "crc32"}},
        {"tick": {"max_ahead_s": 10}},
    ],
)
def test_the_configuration_hash_changes_with_what_a_tick_depends_on(tables: dict[str, Any]) -> None:
    assert parse(tables).config_hash != Settings().config_hash


@pytest.mark.parametrize(
    "tables",
    [
        {"application": {"instance": "elsewhere"}},
        {"http": {"port": 1, "host": "0.0.0.0"}},
        {"redis": {"url": "redis://elsewhere"}},
        {"kafka": {"bootstrap_servers": "elsewhere:9092", "session_timeout_s": 30}},
        {"customers": {"cache_rows": 5_000}},
        {"log": {"level": "DEBUG"}},
        {"tick": {"max_events": 10, "max_wait_ms": 5}},
        {"dead_letters": {"window": 10}},
        {"topics": {"alerts": "crm"}},
    ],
)
def test_the_configuration_hash_does_not_change_with_where_a_worker_runs(tables: dict[str, Any]) -> None:
    assert parse(tables).config_hash == Settings().config_hash


def test_the_configuration_text_is_json_that_begins_the_same_settings_again() -> None:
    settings = parse({"alerts": {"max_per_day": 5}, "models": {"seed": 3}})
    text = orjson.loads(settings.config_text)
    again = parse({name: text[name] for name in ("application", "alerts", "customers", "models", "journal")})
    assert (again.config_text, len(settings.config_hash)) == (settings.config_text, 12)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"kafka": {"ssl_cafile": "ca.pem"}}, "kafka.ssl_cafile is set and TLS is not spoken"),
        ({"redis": {"ssl_cafile": "ca.pem"}}, "redis.ssl_cafile is set and TLS is not spoken: set redis.url = rediss"),
        ({"redis": {"url": "rediss://r", "ssl_keyfile": "key"}}, "redis.ssl_keyfile is set without redis.ssl_certfile"),
    ],
)
def test_files_of_tls_that_would_not_be_used_are_refused(tables: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(tables)
    assert told in str(caught.value)


def test_a_client_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = parse({"kafka": {"client": "librdkafka"}})
    assert [made.__name__ for made in run.clients(settings)] == ["LibrdkafkaInputs", "LibrdkafkaOutputs"]
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    with pytest.raises(Misconfigured, match=r"pip install .\.\[librdkafka\]"):
        run.clients(settings)
