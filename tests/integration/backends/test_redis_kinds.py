"""A store of more than one server: a cluster of three primaries, and a primary that sentinels name."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from stream.backends.redis import RedisStore, connected
from stream.errors import StoreUnavailable
from stream.privileges import REDIS_CLUSTER, REDIS_WORKER, redis_rule
from stream.settings import Settings
from tests.conformance.backends import StoreContract, apply, marker
from tests.integration.backends.on_servers import OnServers, settings_of
from tests.integration.site import Site, until
from tests.servers import RedisServer
from tests.servers.server import free_port

pytestmark = pytest.mark.servers

SLOTS = 16_384


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """Three primaries with a third of the slots each; what they know of each other survives a kill, the data do not."""
    found = []
    try:
        for _ in range(3):
            options = {
                "cluster-enabled": "yes",
                "cluster-port": str(free_port()),
                "cluster-node-timeout": "2000",
                "cluster-config-file": "nodes.conf",
            }
            server = RedisServer(options=options, data=tmp_path_factory.mktemp("node"))
            server.start()
            found.append((server, options["cluster-port"]))
        for place, (server, _) in enumerate(found):
            with redis.Redis.from_url(server.url) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", SLOTS * place // 3, SLOTS * (place + 1) // 3 - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", place + 1)
                for other, other_bus in found[:place]:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, other_bus)
        until(lambda: all(is_whole(server) for server, _ in found), "a cluster")
        yield [server for server, _ in found]
    finally:
        for server, _ in found:
            server.stop()


def is_whole(server: RedisServer) -> bool:
    with redis.Redis.from_url(server.url) as client:
        info = client.execute_command("CLUSTER", "INFO")
        text = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
        return (text["cluster_state"], text["cluster_known_nodes"]) == ("ok", "3")


def url_of(servers: list[RedisServer]) -> str:
    return "redis://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


class OnNodes(OnServers):
    """The store's contract, asked of a cluster."""

    def settings(self, instance: str = "one", **more: object) -> Settings:
        return super().settings(instance, **more, kind="cluster")

    def take_out(self, customer: str) -> None:
        with connected(self.settings().redis) as client:
            assert client.delete(f"{{{self.name}:p0}}:c:{customer}") == 1


class TestStore(StoreContract):
    @pytest.fixture
    def cluster(self, nodes: list[RedisServer]) -> Iterator[OnServers]:
        made = OnNodes(url=url_of(nodes))
        yield made
        made.close()


def test_a_worker_on_a_cluster_rebuilds_what_a_killed_node_has_lost(nodes, kafka_bootstrap, tmp_path, delayed):
    site = Site(kafka_bootstrap, url_of(nodes), tmp_path, REDIS__KIND="cluster", REDIS__TIMEOUT_S="1")
    try:
        site.feed(0.4)
        worker = site.worker()
        site.wait_for_the_end(worker)
        until(lambda: site.seq() > 2, "ticks to lose")
        with site.redis() as client:
            port = client.get_node_from_key(f"{{{site.name}:p0}}:m").port
        (node,) = (one for one in nodes if one.port == port)
        node.kill()
        site.feed(0.6)
        time.sleep(3)  # the others see that it is gone
        node.start()
        until(lambda: is_whole(node), "a cluster again")
        began = time.time()
        with redis.Redis.from_url(node.url) as client:
            assert client.dbsize() == 0
        site.wait_for_the_end(worker)
        delayed("a node of a Redis cluster killed, empty when it is back", time.time() - began)
        site.feed()
        site.wait_for_the_end(worker)
        told = site.ask("doctor").decode()
        assert "FAIL" not in told, told
        site.finish(worker)
    finally:
        site.close()


def test_a_user_of_a_cluster_needs_to_ask_for_its_nodes_and_no_more_than_of_a_server(nodes):
    settings = settings_of("t-narrow", url=url_of(nodes).replace("redis://", "redis://narrow:narrow@"), kind="cluster")
    for allowed in (REDIS_WORKER, (*REDIS_WORKER, *REDIS_CLUSTER)):
        for node in nodes:
            with redis.Redis.from_url(node.url) as client:
                rule = redis_rule(settings, allowed).split()
                client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">narrow", *rule)
        if allowed == REDIS_WORKER:
            with pytest.raises(StoreUnavailable, match=r"grant its user \+cluster\|slots \+command"):
                RedisStore(settings)
    store = RedisStore(settings)
    store.check()
    apply(store, marker(1), {"c-1": 1})
    assert list(store.load(0, ["c-1"])[1]) == ["c-1"]
    store.close()


class Sentinel(RedisServer):
    """Watches one primary, alone."""

    def __init__(self, primary: RedisServer, directory: Path) -> None:
        super().__init__()
        self._file = directory / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor shop 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds shop 1000\nsentinel failover-timeout shop 5000\n"
        )
        self._changed = {"sentinel": ""}

    def command(self, directory: Path) -> tuple[list[str], str]:
        (program, *_), origin = super().command(directory)
        return [program, str(self._file), "--sentinel"], origin


def test_a_worker_follows_its_sentinel_to_the_primary_that_takes_over(kafka_bootstrap, tmp_path, delayed):
    with (
        RedisServer(appendonly=True, options={"repl-diskless-sync-delay": "0"}) as first,
        RedisServer(appendonly=True, options={"replicaof": f"127.0.0.1 {first.port}"}) as second,
        Sentinel(first, tmp_path) as sentinel,
    ):
        url = f"redis://127.0.0.1:1,127.0.0.1:{sentinel.port}"
        site = Site(kafka_bootstrap, url, tmp_path, REDIS__KIND="sentinel", REDIS__PRIMARY="shop", REDIS__TIMEOUT_S="1")
        try:
            with redis.Redis.from_url(sentinel.url) as asked, redis.Redis.from_url(second.url) as replica:
                until(lambda: replica.info("replication").get("master_link_status") == "up", "a replica")
                until(lambda: asked.sentinel_slaves("shop"), "a sentinel that knows the replica")
            site.feed(0.5)
            worker = site.worker()
            site.wait_for_the_end(worker)
            began = time.time()
            first.kill()
            site.feed()
            site.wait_for_the_end(worker)
            delayed("primary killed, a sentinel names the replica", time.time() - began)
            site.finish(worker)
            with redis.Redis.from_url(second.url) as now:
                assert now.info("replication")["role"] == "master"
        finally:
            site.close()


def test_sentinels_and_nodes_that_do_not_answer_are_said_with_what_to_do_and_without_the_password():
    for kind in ("sentinel", "cluster"):
        url = f"redis://:geheim@127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
        settings = settings_of("t-nobody", url=url, kind=kind)
        with pytest.raises(StoreUnavailable, match=r"is redis\.url right") as caught:
            RedisStore(settings).check()
        assert "geheim" not in str(caught.value)
