"""Where the CLI's settings come from: the command line, PENSTOCK_* variables, config.toml, defaults; in this order."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agents._output import emit_json, emit_table
from penstock.errors import ConfigError

DEFAULTS = {
    "network": "local",
    "rpc_url": "",
    "account": "",
    "wallet": "",
    "caps": "",
    "deployment": "",
    "allow_private": "",
}
SECTIONS = ("choice", "serve", "local", "budgets")
"""Tables of config.toml, each read by the part of the program that it is for."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Setting:
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All as text; empty where nothing is set."""

    home: Path
    values: Mapping[str, Setting]
    tables: Mapping[str, Any] = field(default_factory=dict)
    """Of `SECTIONS`, as config.toml has them."""
    environ: Mapping[str, str] = field(default_factory=dict)

    def section(self, name: str, kind: type[_T], options: Mapping[str, Any] | None = None) -> _T:
        """A table as a msgspec.Struct: options that are not None before PENSTOCK_<TABLE>_<FIELD> before config.toml
        before defaults. ConfigError where a value does not fit, or a field is not known."""
        import msgspec

        given = self.tables.get(name, {})
        if not isinstance(given, dict):
            raise ConfigError(f"{name} in {self.home / 'config.toml'} is no table; write [{name}]")
        values = dict(given)
        for one in msgspec.structs.fields(kind):  # type: ignore[arg-type]
            variable = f"PENSTOCK_{name}_{one.name}".upper()
            if variable in self.environ:
                text = self.environ[variable]
                values[one.name] = text.split(",") if isinstance(one.default_factory, type) else text
        values |= {key: value for key, value in (options or {}).items() if value is not None}
        try:
            return msgspec.convert(values, kind, strict=False)
        except msgspec.ValidationError as error:
            known = ", ".join(one.name for one in msgspec.structs.fields(kind))  # type: ignore[arg-type]
            raise ConfigError(
                f"[{name}] of {self.home / 'config.toml'}, or an option or PENSTOCK_{name.upper()}_... in its place: "
                f"{error}; known are {known}"
            ) from error

    @property
    def network(self) -> str:
        return self.values["network"].value

    @property
    def rpc_url(self) -> str:
        return self.values["rpc_url"].value

    @property
    def account(self) -> str:
        return self.values["account"].value

    @property
    def wallet(self) -> str:
        """The agent wallet that pays; empty: the account does."""
        return self.values["wallet"].value

    @property
    def caps(self) -> str:
        """What this software spends at most, see `agents._caps`; empty: no caps."""
        return self.values["caps"].value

    @property
    def deployment(self) -> str:
        return self.values["deployment"].value

    @property
    def allow_private(self) -> bool | None:
        """None: on local chains."""
        text = self.values["allow_private"].value.lower()
        if text in ("", "1", "0", "true", "false", "yes", "no"):
            return None if not text else text in ("1", "true", "yes")
        raise ConfigError(f"allow_private is {text!r}; write true or false")

    @property
    def journal(self) -> Path:
        return self.home / "journal.db"

    @property
    def records(self) -> Path:
        """Beside the journal: what was asked, bought, and why."""
        return self.home / "records.db"


def settings(options: Mapping[str, str | None], environ: Mapping[str, str] = os.environ) -> Settings:
    """ConfigError where config.toml is malformed or has a key that we do not know."""
    home = Path(options.get("home") or environ.get("PENSTOCK_HOME") or "~/.penstock").expanduser()
    file = home / "config.toml"
    recorded: dict[str, object] = {}
    try:
        recorded = tomllib.loads(file.read_text())
    except FileNotFoundError:
        pass
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    tables = {name: recorded.pop(name) for name in SECTIONS if name in recorded}
    if unknown := sorted(recorded.keys() - DEFAULTS.keys()):
        known = [*DEFAULTS, *(f"[{name}]" for name in SECTIONS)]
        raise ConfigError(f"{file} has unknown settings: {', '.join(unknown)}; known are {', '.join(known)}")
    values = {}
    for name, default in DEFAULTS.items():
        variable = f"PENSTOCK_{name.upper()}"
        if (option := options.get(name)) is not None:
            values[name] = Setting(option, f"--{name.replace('_', '-')}")
        elif variable in environ:
            values[name] = Setting(environ[variable], variable)
        elif name in recorded:
            value = recorded[name]
            if not isinstance(value, str | bool):
                raise ConfigError(f"{name} in {file} is not a text")
            values[name] = Setting(str(value).lower() if isinstance(value, bool) else value, str(file))
        else:
            values[name] = Setting(default, "default")
    return Settings(home, values, tables, environ)


def show(settings: Settings, *, json: bool) -> None:
    """Every setting and where it comes from."""
    values = {**settings.values, "home": Setting(str(settings.home), "")}
    if json:
        emit_json({name: asdict(one) for name, one in values.items()})
        return
    emit_table(["SETTING", "VALUE", "FROM"], [[name, one.value or "-", one.origin] for name, one in values.items()])
