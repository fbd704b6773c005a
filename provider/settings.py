"""What an operator may set: flags of the command line over PENSTOCK_PROVIDER_* over a TOML file over defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from penstock.errors import ConfigError

PREFIX = "PENSTOCK_PROVIDER_"
BUNDLED_MODEL = Path(__file__).parent / "model" / "penstock-tiny.gguf"
BUNDLED_NAME = "penstock-tiny"


_SHARED = ("network", "rpc_url", "deployment", "account", "home")
"""What the consumer's commands have too: PENSTOCK_X counts where PENSTOCK_PROVIDER_X is not set."""


class _SharedEnvironment(PydanticBaseSettingsSource):
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return os.environ.get(f"PENSTOCK_{field_name}".upper()), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(self.settings_cls.model_fields[name], name)[0] for name in _SHARED}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """Times are seconds, sizes bytes, unless said otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    # --- the chain ---
    network: str = "local"
    """Name of a network in `penstock.networks`."""
    rpc_url: str = ""
    """JSON-RPC endpoints, with commas between: where one fails the next is asked. Empty: the network's own."""
    deployment: str = ""
    """Deployment file; empty: the one recorded for the chain."""
    account: str = ""
    """Whose key registers, relays and withdraws: test:N, a keystore file or alias, or env."""
    signer: str = ""
    """Whose key signs accepts and receipts, written like the account; empty: the account's own."""
    payee: str = ""
    """Whom streams must pay, decided at registration; empty: the account itself."""
    confirmations: int = Field(0, ge=0, le=1000)
    """Blocks on top of an event before it counts."""
    large_deposits: tuple[str, ...] = ()
    """TOKEN:AMOUNT, each: a stream or channel with so much or more in it counts only after `large_confirmations`."""
    large_confirmations: int = Field(15, ge=0, le=1000)
    poll_seconds: float = Field(0.4, gt=0, le=60)
    """How often the chain's head is read."""
    busy_poll_seconds: float = Field(0.15, gt=0, le=60)
    """The same while answers run: how late a cancel may be seen."""
    outage_seconds: float = Field(15, gt=0)
    """After so long without an answer of the node no session is opened; open ones go on to their known end."""
    head_stuck_seconds: float = Field(0, ge=0)
    """The same where the head has not moved for so long; 0: never, for chains that mine on demand."""

    max_skew_seconds: float = Field(0, ge=0)
    """How far the host's clock and the chain's may be apart; 0: however far, for chains whose time is made up."""

    # --- where it is served ---
    host: str = "127.0.0.1"
    port: int = Field(8402, ge=0, le=65535)
    """0: any free one."""
    public_url: str = ""
    """What the registry says; empty: http://host:port."""
    peer_url: str = ""
    """Where other gateways that share the state reach this one; empty: http://host:port."""
    home: str = "~/.penstock"
    """Folder of what is kept."""
    state: str = Field("", repr=False)
    """SQLite file, or a PostgreSQL URL where several gateways share the work; empty:
    HOME/provider-CHAIN-ADDRESS.sqlite."""

    # --- what is sold ---
    model: str = BUNDLED_NAME
    offers: tuple[str, ...] = ()
    """TOKEN:PRICE, or MODEL=TOKEN:PRICE where several are sold. TOKEN is native, a symbol of the deployment or an
    address. PRICE is an amount of it per second (0.00001), or per million prompt and completion tokens (0.1/0.3), or
    both joined (0.00001+0.1/0.3)."""
    slots: int = Field(4, ge=1, le=10_000)
    """Sessions served at once, over all offers."""
    context_length: int = Field(1024, ge=1, le=2**32 - 1)
    """Tokens of one session."""
    max_ttft_ms: int = Field(0, ge=0, le=2**32 - 1)
    """The time to the first token that offers promise, milliseconds; 0: none promised."""
    region: str = Field("", max_length=32)
    quantization: str = Field("", max_length=16)

    # --- skills and licences ---
    skills: tuple[int, ...] = ()
    """Products of ours that are executed here, beside the model."""
    skill_concurrency: int = Field(4, ge=1, le=1000)
    """Calls of skills at once."""
    skill_private_backends: bool = False
    """Backends of HTTP skills, hosts that skills declare, and gateways of parts may be on this machine or a private
    network."""
    ipfs_url: str = ""
    """HTTP API of an IPFS node; empty: skills are kept in HOME/content alone."""
    require_licence: int = Field(0, ge=0)
    """The product of which a payer must hold a licence to use our offers; 0: none."""
    model_licence: int = Field(0, ge=0)
    """The product under whose licence the model is served; 0: it needs none."""

    # --- the engine ---
    engine_urls: tuple[str, ...] = ()
    """Base URLs of OpenAI-compatible servers, with or without /v1, each for one model (MODEL=URL) or for all; none and
    no vLLM: the embedded engine."""
    engine_models: tuple[str, ...] = ()
    """What engines call a model: MODEL=NAME, or NAME for the only one. Where nothing is said, as the offer does."""
    engine_key: str = Field("", repr=False)
    """Bearer token of the engine."""
    vllm: str = ""
    """A vLLM to be started here: the folder of its Python environment, or its command; empty: none."""
    vllm_source: str = ""
    """What it loads, a Hugging Face id or a folder; empty: what the engine calls the model."""
    vllm_args: tuple[str, ...] = ()
    """More of its arguments, as its own command line takes them."""
    lora: tuple[str, ...] = ()
    """Adapters that it loads beside its model: MODEL=FOLDER, each a model of its own on the market."""
    vllm_start_seconds: float = Field(1800, gt=0)
    """Until it answers, with what it downloads and compiles at its first start. One that ends is not waited for."""
    drain_seconds: float = Field(30, ge=0)
    """How long a restart of an engine waits for what runs on it."""
    gguf: str = ""
    """Model file of the embedded engine; empty: the bundled one."""
    embeddings: Literal["", "mean", "cls", "last"] = ""
    """How the embedded engine pools the vectors of a text's tokens into its embedding, as its model was trained to;
    empty: it gives no embeddings."""
    engine_threads: int = Field(1, ge=1, le=256)
    engine_start_seconds: float = Field(180, gt=0)
    """Until any other engine answers."""
    engine_connect_seconds: float = Field(5, gt=0)
    engine_answer_seconds: float = Field(120, gt=0)
    """Until the engine answers at all, its queue included."""
    engine_idle_seconds: float = Field(60, gt=0)
    """Between two pieces of an answer."""
    answer_seconds: float = Field(3300, gt=0, le=3300)
    """An answer at most: an hour after its accept the receipt can be asked for on the chain."""

    # --- limits ---
    min_relayed_duration: int = Field(30, ge=1)
    """A stream that the provider opens, and pays the gas for, is ordered for so long at least."""
    quoted_seconds: int = Field(60, ge=1)
    """The duration for which a 402 body names the price."""
    min_relayed_tokens: int = Field(10_000, ge=1)
    """A channel that the provider opens, and pays the gas for, can pay for so many completion tokens at least."""
    session_concurrency: int = Field(4, ge=1, le=1000)
    """Answers at once in one session."""
    max_choices: int = Field(4, ge=1, le=128)
    """The highest `n` of a request."""
    max_body: int = Field(4 * 2**20, ge=1024)
    max_running: int = Field(0, ge=0, le=100_000)
    """Answers at once on all engines, the rest waits in a queue; 0: as many as slots and sessions allow."""
    queue_length: int = Field(256, ge=0, le=100_000)
    queue_seconds: float = Field(30, gt=0)
    """How long a request waits for its turn. Those that pay for their time go first."""
    session_rate: int = Field(0, ge=0)
    """Requests a minute of one session; 0: any number, since they are paid for."""
    address_rate: int = Field(1200, ge=0)
    """Handshakes and unknown tokens a minute from one address; 0: any number."""
    behind_proxy: bool = False
    """Whether addresses are those that a proxy of ours puts last into X-Forwarded-For."""
    stop_seconds: float = Field(3, ge=0)
    """How long running answers may go on after the provider was told to stop."""

    keep_days: float = Field(30, ge=1)
    """How long the token ids of an answer are kept, and of a session that is over its receipts and usage. On the chain
    a receipt can be asked for within an hour or so."""

    # --- money ---
    credit_tokens: int = Field(256, ge=1, le=10**6)
    """What is served ahead of vouchers, as completion tokens' price: what one channel's payer can leave unpaid at
    most. It should cover a short prompt and the tokens that flow while a voucher is on its way."""
    step_tokens: int = Field(64, ge=1, le=10**6)
    """How many completion tokens ahead payers are told to sign; at most the credit."""
    voucher_seconds: float = Field(2, ge=0, le=60)
    """How long an answer waits for a voucher before it is cut."""
    payout_seconds: float = Field(60, gt=0)
    payout_gas_multiple: float = Field(2, ge=0)
    """A payout waits until it is worth so many times its gas."""

    # --- what is said ---
    metrics_port: int = Field(0, ge=0, le=65535)
    """Where Prometheus finds /metrics; 0: nowhere."""
    metrics_host: str = "127.0.0.1"
    log_level: str = "info"
    log_json: bool = False

    @property
    def licensed(self) -> bool:
        """Whether licences matter to it at all."""
        return bool(self.skills or self.require_licence or self.model_licence)

    @field_validator("engine_urls")
    @classmethod
    def _are_urls(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not named(text)[1].startswith(("http://", "https://")):
                raise ValueError("write it with http:// or https://")
        return texts

    @field_validator("lora")
    @classmethod
    def _are_named(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(all(text.partition("=")) for text in texts):
            raise ValueError("write MODEL=FOLDER")
        return texts

    @field_validator("public_url", "peer_url", "rpc_url", "ipfs_url")
    @classmethod
    def _is_url(cls, text: str) -> str:
        urls = [url.strip().rstrip("/") for url in text.split(",") if url.strip()]
        if not all(url.startswith(("http://", "https://")) for url in urls):
            raise ValueError("write it with http:// or https://")
        return ",".join(urls)

    @field_validator("model")
    @classmethod
    def _is_model(cls, text: str) -> str:
        if not text or len(text.encode()) > 96:
            raise ValueError("a model's name is 1 to 96 bytes")
        return text

    @field_validator("log_level")
    @classmethod
    def _is_level(cls, text: str) -> str:
        if text.lower() not in ("debug", "info", "warning", "error"):
            raise ValueError("choose debug, info, warning or error")
        return text.lower()

    @property
    def models(self) -> tuple[str, ...]:
        """What is sold, by its names on the market."""
        return tuple(dict.fromkeys(named(text)[0] or self.model for text in self.offers)) or (self.model,)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SharedEnvironment(settings_cls), TomlConfigSettingsSource(settings_cls)


def default_config() -> Path:
    """Where `init` puts the configuration, and where it is looked for when none is named."""
    home = os.environ.get(PREFIX + "HOME") or os.environ.get("PENSTOCK_HOME") or "~/.penstock"
    return Path(home).expanduser() / "provider.toml"


def named(text: str) -> tuple[str, str]:
    """MODEL=SOMETHING as both; the model is empty where none is named. A URL may have a = of its own."""
    name, equals, rest = text.partition("=")
    return (name, rest) if equals and "://" not in name else ("", text)


def load(overrides: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings of one run. `overrides` win; those that are None or empty tuples are as not given.
    ConfigError names each setting that is wrong and where it could be set."""
    given = {name: value for name, value in overrides.items() if value is not None and value != ()}
    if config is None:
        config = default_config() if default_config().is_file() else None
    elif not config.exists() or config.is_dir():
        raise ConfigError(f"there is no configuration file {config}: `penstock-provider init --config` writes one")

    class Loaded(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return Loaded(**given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {_said(e['type'], e['msg'])}" for e in error.errors())
        raise ConfigError(f"wrong settings: {wrong}") from None
    except ValueError as error:  # TOML, or JSON within an environment variable
        place = config or f"the {PREFIX}... variables"
        raise ConfigError(f"the settings in {place} cannot be read: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}; check its rights") from None


def _said(kind: str, message: str) -> str:
    return "there is no such setting" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
