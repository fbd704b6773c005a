"""Which contracts can be mutated, in which sources, and which tests cover them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNIT, STATEFUL = "tests/contracts/unit", "tests/contracts/stateful"


@dataclass(frozen=True)
class Target:
    name: str
    """The contract, whose own source is the first."""
    modules: tuple[str, ...]
    """Those that its tests cover; what it shares with another contract belongs to the one that covers it best."""
    tests: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Tests of these that count gas or bytes, which says nothing of unoptimized bytecode."""
    mocks: tuple[tuple[str, str], ...] = ()
    """Contracts that tests use to call one of the modules alone: its name, and theirs."""

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.name, *self.modules)


TARGETS = {
    target.name: target
    for target in (
        Target(
            "StreamPay",
            ("accrual", "assets", "vault", "streams", "channels", "signatures", "guardianship"),
            (f"{UNIT}/streampay", f"{UNIT}/channels", f"{UNIT}/test_field_mistakes.py"),
            (f"{UNIT}/streampay/test_batches.py::test_two_hundred_streams_fit_and_one_more_does_not",),
        ),
        Target("License", ("licences", "soulbound"), (f"{UNIT}/license", f"{STATEFUL}/test_license.py")),
        Target("Catalogue", ("products", "pages"), (f"{UNIT}/license", f"{STATEFUL}/test_license.py")),
        Target("AgentWallet", ("spending", "windows"), (f"{UNIT}/wallet", f"{STATEFUL}/test_wallet.py")),
        Target("AgentWalletFactory", (), (f"{UNIT}/wallet",)),
        Target("Staking", (), (f"{UNIT}/staking",)),
        Target(
            "Registry",
            ("identities", "listings", "price_index"),
            (f"{UNIT}/registry", f"{UNIT}/staking"),
            (f"{UNIT}/registry/test_gas.py",),
            (("price_index", "PriceIndexMock"),),
        ),
        Target(
            "Slashing",
            ("receipts", "convictions", "credits"),
            (f"{UNIT}/slashing", f"{STATEFUL}/test_slashing.py"),
            (f"{UNIT}/slashing/test_constructor.py::test_code_is_below_the_limit",),
        ),
    )
}
SOURCES = {
    source: f"contracts/{source}.vy" if source in TARGETS else f"contracts/modules/{source}.vy"
    for target in TARGETS.values()
    for source in target.sources
}
"""Where each source is, by name."""
