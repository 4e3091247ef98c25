"""A Kafka and a Redis whose doors are shut: TLS, passwords, access lists that deny what they do not grant."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import redis
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from stream.privileges import Grant
from tests.integration.site import Site, until
from tests.servers import KafkaServer, RedisServer
from tests.servers.server import free_port
from tests.servers.tls import Authority, Terminator

KAFKA_PASSWORD, REDIS_PASSWORD = "geheim-kafka-7f3a", "geheim-redis-91bc"
DOORS = ("SCRAM", "EXPIRED", "ELSEWHERE", "MUTUAL")


class Doors:
    """The servers. Beside the doors each has a plain one without a password, for the test's own hands."""

    def __init__(self, directory: Path) -> None:
        self.authority, self.stranger = Authority(directory / "ours"), Authority(directory / "theirs")
        issue = self.authority.issue
        self.good = issue("good", "127.0.0.1", "localhost")
        self.expired = issue("expired", "127.0.0.1", lives_s=-60)
        self.elsewhere = issue("elsewhere", "elsewhere.example")
        self.client = issue("client", "worker", common_name="worker")
        self.kafka = KafkaServer()
        self.redis = RedisServer(appendonly=True)
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in DOORS}
        self.redis_doors = {name: free_port() for name in ("good", "expired", "elsewhere")}
        self._stack = ExitStack()
        self.kafka.changed = self._kafka_settings()

    def _kafka_settings(self) -> dict[str, str]:
        plain = f"PLAINTEXT://{self.kafka.bootstrap_servers}"
        doors = ",".join(f"{name}://{address}" for name, address in self.addresses.items())
        found = {
            "listeners": f"{plain},{doors},CONTROLLER://127.0.0.1:{self.kafka.controller_port}",
            "advertised.listeners": f"{plain},{doors}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SCRAM:SASL_SSL,"
            "EXPIRED:SASL_SSL,ELSEWHERE:SASL_SSL,MUTUAL:SSL",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.mutual.ssl.principal.mapping.rules": r"RULE:^CN=([^,]+).*$/$1/",
            "listener.name.mutual.ssl.truststore.type": "PEM",
            "listener.name.mutual.ssl.truststore.location": str(self.authority.cafile),
        }
        shown = {"SCRAM": self.good, "EXPIRED": self.expired, "ELSEWHERE": self.elsewhere, "MUTUAL": self.good}
        for name, identity in shown.items():
            prefix = f"listener.name.{name.lower()}"
            found |= {
                f"{prefix}.ssl.keystore.type": "PEM",
                f"{prefix}.ssl.keystore.location": str(identity.both),
                f"{prefix}.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule "
                "required;",
            }
        return found

    def __enter__(self) -> Self:
        for server in (self.kafka, self.redis):
            self._stack.enter_context(server)
        self.terminators = {
            name: self._stack.enter_context(Terminator(port, self.redis.port, getattr(self, name)))
            for name, port in self.redis_doors.items()
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        with KafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers) as client:
            yield client

    def know(self, users: Iterable[str]) -> None:
        """Let these users in by SCRAM; they may do nothing yet."""
        sha512 = ScramMechanism.SCRAM_SHA_512
        with self.admin() as admin:
            said = admin.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(user, sha512, KAFKA_PASSWORD, iterations=4096) for user in users]
            )
        assert not any(said.values()), said

    def grant(self, user: str, grants: Iterable[Grant]) -> None:
        """Let a user do this, and wait until the broker's authorizer knows."""
        acls = [acl for grant in grants for acl in _acls(user, grant)]
        with self.admin() as admin:
            wanted = {*_held(admin, user), *acls}
            admin.create_acls(acls)
            until(lambda: set(_held(admin, user)) == wanted, f"the grants of {user}", 10)

    def withdraw(self, user: str, grant: Grant) -> None:
        """Take a grant away from under whoever uses it."""
        gone = [_filter(user, acl) for acl in _acls(user, grant)]
        with self.admin() as admin:
            left = set(_held(admin, user)) - set(_acls(user, grant))
            admin.delete_acls(gone)
            until(lambda: set(_held(admin, user)) == left, f"what is left to {user}", 10)

    def redis_user(self, user: str, rule: str) -> None:
        """A user who may do what the rule says, and has no right to any channel."""
        with redis.Redis.from_url(self.redis.url) as client:
            client.execute_command(
                *("ACL", "SETUSER", user, "reset", "on", f">{REDIS_PASSWORD}", "resetchannels", *rule.split())
            )

    def kafka_as(self, user: str, door: str = "SCRAM") -> dict[str, str]:
        """Settings of one of these users."""
        return {
            "KAFKA__BOOTSTRAP_SERVERS": self.addresses[door],
            "KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA__SASL_USERNAME": user,
            "KAFKA__SASL_PASSWORD": KAFKA_PASSWORD,
            "KAFKA__SSL_CAFILE": str(self.authority.cafile),
        }

    def redis_as(self, user: str, door: str = "good") -> dict[str, str]:
        return {
            "REDIS__URL": f"rediss://{user}:{REDIS_PASSWORD}@127.0.0.1:{self.redis_doors[door]}/1",
            "REDIS__SSL_CAFILE": str(self.authority.cafile),
        }


KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.CLUSTER,
}


def _acls(user: str, grant: Grant) -> list[ACL]:
    how = ACLResourcePatternType.PREFIXED if grant.prefixed else ACLResourcePatternType.LITERAL
    pattern = ResourcePattern(KINDS[grant.kind], grant.name, how)
    return [
        ACL(f"User:{user}", "*", ACLOperation[operation], ACLPermissionType.ALLOW, pattern)
        for operation in grant.operations
    ]


def _filter(user: str, acl: ACL) -> ACLFilter:
    pattern = acl.resource_pattern
    resource = ResourcePatternFilter(pattern.resource_type, pattern.resource_name, pattern.pattern_type)
    return ACLFilter(f"User:{user}", "*", acl.operation, acl.permission_type, resource)


def _held(admin: KafkaAdminClient, user: str) -> list[ACL]:
    everything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
    found, error = admin.describe_acls(
        ACLFilter(f"User:{user}", None, ACLOperation.ANY, ACLPermissionType.ANY, everything)
    )
    assert "NoError" in str(error), error
    return list(found)


@contextmanager
def through(site: Site, *settings: Mapping[str, str], **more: str) -> Iterator[None]:
    """What is started meanwhile has these settings; the test itself goes in by the plain door."""
    before = dict(site.environment)
    for some in (*settings, more):
        site.set(**some)
    try:
        yield
    finally:
        site.environment = before
