"""The docs cannot lie: tables, commands, settings, events and links in them are held against the code."""

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import orjson
import pytest

import stream.cli
from docs import tables
from stream.events import EventRules, Record, decode
from stream.settings import parse

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/kubernetes/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def blocks(language: str) -> list[pytest.param]:
    """Every fenced block of a language in the docs."""
    found = []
    for page in PAGES:
        for place, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)):
            found.append(pytest.param(text, id=f"{page.name}-{place}"))
    return found


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_in_the_docs_is_what_the_code_says(name: str) -> None:
    page, table = tables.TABLES[name]
    text = (ROOT / "docs" / page).read_text("utf-8")
    assert text == tables.replaced(text, name, table()), "run `python -m docs.tables`"
    assert table() in text


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_in_the_docs_are_settings(text: str) -> None:
    parse(tomllib.loads(text))


@pytest.mark.parametrize("text", blocks("json"))
def test_an_event_in_the_docs_decodes_and_an_alert_is_json(text: str) -> None:
    body = text.encode()
    if b'"specversion"' in body:
        kind = orjson.loads(body)["data"]["kind"]
        assert (ROOT / "deploy" / "schemas" / f"{kind}.v1.json").exists()
    else:
        decode(Record("docs", 0, 0, 1_800_000_000_000, None, body), EventRules("EUR"))


@pytest.mark.parametrize("text", blocks("sh"))
def test_a_command_in_the_docs_is_one_the_program_has(text: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    parser = stream.cli.parser()
    for line in text.splitlines():
        words = shlex.split(line.partition(">")[0], comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets
        elif words[:1] == ["driftline"]:
            assert isinstance(parser.parse_args(words[1:]), argparse.Namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_in_the_docs_leads_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            path, _, heading = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            if heading:
                anchors = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
                assert heading in [anchor.lower().replace(" ", "-") for anchor in anchors], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_test_or_file_named_in_the_docs_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:stream|tests|online_models|deploy|examples|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    tests = "\n".join(each.read_text("utf-8") for each in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
