"""The tables of config.toml: options before variables before the file before defaults; the documented example holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents._settings import settings
from agents.buyer import ChoiceSettings
from agents.gateway._run import ServeSettings
from agents.local import LocalSettings
from agents.records.budgets import BudgetSettings
from penstock.errors import ConfigError
from tests.deployed import ROOT


def test_options_beat_variables_beat_the_file_beat_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[serve]\nhost = "::1"\nport = 1\napi_key = "file"\nallow_host = ["a"]\n')
    environ = {"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_SERVE_PORT": "2", "PENSTOCK_SERVE_API_KEY": "variable"}
    found = settings({}, environ).section("serve", ServeSettings, {"port": 3, "host": None})
    assert found == ServeSettings(host="::1", port=3, api_key="variable", allow_host=["a"])
    lists = environ | {"PENSTOCK_SERVE_ALLOW_HOST": "x,y"}
    assert settings({}, lists).section("serve", ServeSettings).allow_host == ["x", "y"]
    assert settings({}, {}).section("local", LocalSettings) == LocalSettings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serve]\ncolour = 1\n", "unknown field `colour`; known are host, port"),
        ('[serve]\nport = "many"\n', "Expected `int`"),
        ('serve = "yes"\n', "is no table"),
        ("[sevre]\n", r"unknown settings: sevre; known are .*\[serve\]"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        settings({}, {"PENSTOCK_HOME": str(tmp_path)}).section("serve", ServeSettings)


def test_the_documented_settings_are_the_defaults_and_all_of_them(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "gateway.md").read_text(), re.DOTALL)
    (tmp_path / "config.toml").write_text(example)
    found = settings({}, {"PENSTOCK_HOME": str(tmp_path)})
    kinds: dict[str, Any] = {"serve": ServeSettings, "local": LocalSettings}
    for name, kind in kinds.items():
        assert set(found.tables[name]) == {one.name for one in msgspec.structs.fields(kind)}, name
    assert found.section("serve", ServeSettings) == ServeSettings()
    assert msgspec.structs.replace(found.section("local", LocalSettings), url="") == LocalSettings()
    assert found.section("choice", ChoiceSettings) == ChoiceSettings()
    assert msgspec.convert(found.tables["budgets"]["USDT"], BudgetSettings).stop is True
