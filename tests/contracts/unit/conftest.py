"""Unit tests leave nothing behind."""

import pytest

from tests.fastchain import Chain


@pytest.fixture(autouse=True)
def _undone(evm: Chain) -> None:
    """Each test runs inside a snapshot, also one that never looks at the chain itself."""
