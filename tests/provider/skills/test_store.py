"""Whose the skill gateway's file is."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import ConfigError
from provider.skills.store import SkillStore


async def test_one_process_at_a_time_serves_from_a_file(tmp_path: Path) -> None:
    place = tmp_path / "skills.sqlite"
    first = SkillStore.open(place, owner="us")
    with pytest.raises(ConfigError, match="another provider process uses .* stop it, or name another --home"):
        SkillStore.open(place, owner="us")
    await first.close()
    await SkillStore.open(place, owner="us").close()


async def test_a_file_that_is_not_ours_is_refused_and_let_go(tmp_path: Path) -> None:
    place = tmp_path / "skills.sqlite"
    await SkillStore.open(place, owner="us").close()
    with pytest.raises(ConfigError, match="belongs to us, not them"):
        SkillStore.open(place, owner="them")
    await SkillStore.open(place, owner="us").close()
    place.write_bytes(b"this is no database, and long enough to be sure of it" * 100)
    for _ in range(2):
        with pytest.raises(ConfigError, match="no usable state file"):
            SkillStore.open(place, owner="us")
