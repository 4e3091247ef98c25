"""`driftline customers export` on a real Kafka and a real Redis, after a real run."""

import subprocess
import sys
from collections import Counter

import orjson
import pytest

from stream.cli.customer import newest_version
from tests.integration.shop import Counts
from tests.integration.site import ROOT

pytestmark = pytest.mark.servers


def test_an_export_gives_every_customer_once_as_customer_does_also_while_a_worker_runs(site):
    site.feed()
    worker = site.worker()
    worker.wait_for(lambda: worker.said("ready"), "ready")
    site.wait_for_the_end(worker)
    export = site.command("customers", "export")
    assert export.end() == 0, export.errors
    assert worker.stop() == 0, worker.errors

    lines = site.ask("customers", "export").splitlines()

    found = {line["customer_id"]: line for line in map(orjson.loads, lines)}
    counts = {name: Counts(one["events"], one["orders"], one["spend_minor"]) for name, one in found.items()}
    assert len(lines) == len(found)
    assert counts == site.shop.counts
    assert f"{len(found)} customers of application {site.name}" in site.running[-1].errors
    assert {orjson.loads(line)["customer_id"] for line in export.output.splitlines()} == set(found)
    for name in ("c-000", "c-031", "anon:v-3"):
        assert orjson.loads(site.ask("customer", name, "--json")) == found[name]

    version = newest_version(site.settings)
    assert version is not None
    assert version.segment_names
    by_segment = Counter((one["segment"] or {}).get("id") for one in found.values())
    for number, name in version.segment_names.items():
        for wanted in (str(number), name.upper()):
            chosen = [orjson.loads(line) for line in site.ask("customers", "export", "--segment", wanted).splitlines()]
            assert {one["segment"]["id"] for one in chosen} <= {number}
            assert len({one["customer_id"] for one in chosen}) == len(chosen) == by_segment[number]

    refused = site.command("customers", "export", "--segment", "big spenders")
    assert refused.end() == 2
    assert "there is no segment 'big spenders'" in refused.errors
    assert all(f"{number}  {name}" in refused.errors for number, name in version.segment_names.items())

    pipe = subprocess.Popen(
        [sys.executable, "-m", "stream", "customers", "export"],
        cwd=ROOT,
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with pipe:
        assert pipe.stdout is not None
        assert pipe.stderr is not None
        pipe.stdout.close()  # a reader that has seen enough
        assert b"Traceback" not in pipe.stderr.read()
    assert pipe.returncode == 0


def test_an_export_of_a_segment_says_that_none_is_formed_yet(site):
    refused = site.command("customers", "export", "--segment", "1")
    assert refused.end() == 2
    assert "none is formed yet" in refused.errors
