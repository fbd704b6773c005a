"""The lists of `tests.mutation` are about the contracts as they are"""

from tests.mutation.by_hand import by_hand
from tests.mutation.campaign import explained
from tests.mutation.mutants import Finder
from tests.mutation.targets import SOURCES


def test_every_mutant_that_is_written_or_explained_exists() -> None:
    """One written by hand whose text is gone, or there twice, raises."""
    written = {mutant.key for mutant in by_hand(SOURCES)}
    generated = {mutant.key for source in SOURCES for mutant in Finder(source).mutants()}
    assert len(written) > 200
    assert set(explained()) <= written | generated
    assert all(explained().values()), "a reason is missing"
