"""What the tests of whole workers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.site import Site


@pytest.fixture
def site(kafka_bootstrap: str, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """An application of its own on the session's servers."""
    site = Site(kafka_bootstrap, redis_url, tmp_path)
    yield site
    site.close()
