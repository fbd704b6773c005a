"""What Penstock's contracts have said, and the transactions in which they said it. Amounts are integers of base units;
times are Unix seconds.

What they say of licences is in `penstock.licences`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.licences import LicenceEvent
from penstock.types import Address, Place, StreamId, StreamKey


@dataclass(frozen=True, slots=True)
class Opened:
    place: Place
    id: StreamId
    key: StreamKey
    rate: int
    start: int
    end: int
    from_vault: int


@dataclass(frozen=True, slots=True)
class ToppedUp:
    place: Place
    id: StreamId
    funder: Address
    end: int
    from_vault: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The payee was paid all that was due by min(place.timestamp, end)."""

    place: Place
    id: StreamId
    to: Address
    """Zero: into the payee's vault balance."""
    amount: int


@dataclass(frozen=True, slots=True)
class Closed:
    place: Place
    id: StreamId
    stop: int
    paid: int
    refund: int
    to: Address
    """Receiver of the refund; zero: the payer's vault balance."""


StreamEvent = Opened | ToppedUp | Withdrawn | Closed


@dataclass(frozen=True, slots=True)
class Deposited:
    place: Place
    token: Address
    account: Address
    funder: Address
    amount: int


@dataclass(frozen=True, slots=True)
class VaultWithdrawn:
    place: Place
    token: Address
    account: Address
    to: Address
    amount: int


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    place: Place
    id: StreamId
    key: StreamKey
    deposit: int
    from_vault: int


@dataclass(frozen=True, slots=True)
class ChannelToppedUp:
    place: Place
    id: StreamId
    funder: Address
    amount: int
    from_vault: int


@dataclass(frozen=True, slots=True)
class ChannelSettled:
    """The payee's vault balance was credited up to `cumulative` in all."""

    place: Place
    id: StreamId
    cumulative: int


@dataclass(frozen=True, slots=True)
class ChannelCloseRequested:
    place: Place
    id: StreamId
    reclaimable_at: int


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    place: Place
    id: StreamId
    cumulative: int
    refund: int
    to: Address
    """Receiver of the refund; zero: the payer's vault balance."""


@dataclass(frozen=True, slots=True)
class KeeperPaid:
    """Of what was just settled to the payee's vault balance, so much went to the keeper's instead."""

    place: Place
    token: Address
    payee: Address
    keeper: Address
    amount: int


@dataclass(frozen=True, slots=True)
class VaultSpent:
    """A spender paid so much out of the account's vault balance; each receiver's part is a `Deposited`."""

    place: Place
    token: Address
    account: Address
    spender: Address
    amount: int


ChannelEvent = ChannelOpened | ChannelToppedUp | ChannelSettled | ChannelCloseRequested | ChannelClosed
Event = StreamEvent | ChannelEvent | Deposited | VaultWithdrawn | VaultSpent | KeeperPaid
"""All that StreamPay says about money."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A proof was announced."""

    place: Place
    commitment: str
    account: Address


@dataclass(frozen=True, slots=True)
class FaultProven:
    """Stake was taken for a fault; amounts in base units of the stake's asset."""

    place: Place
    provider: Address
    kind: int
    session_id: StreamId
    start: int
    seq: int
    evidence: str
    reporter: Address
    victim: Address
    """Zero: nobody is compensated."""
    slashed: int
    to_reporter: int
    to_victim: int
    burned: int


@dataclass(frozen=True, slots=True)
class ChallengeOpened:
    """A provider was asked on chain for the receipt that it owes for an accept of its own."""

    place: Place
    id: str
    """The accept's digest."""
    provider: Address
    challenger: Address
    session_id: StreamId
    start: int
    request_hash: str
    accepted_at: int
    """Milliseconds, as the accept says."""
    key: StreamKey
    bond: int
    """Wei."""
    frozen: int


@dataclass(frozen=True, slots=True)
class ChallengeAnswered:
    place: Place
    id: str
    provider: Address
    receipt: str
    """Its hash."""
    to: Address
    """Whose credit the bond is."""
    bond: int


@dataclass(frozen=True, slots=True)
class ChallengeResolved:
    """It was not answered in time."""

    place: Place
    id: str
    provider: Address
    challenger: Address
    victim: Address
    slashed: int
    to_challenger: int
    to_victim: int
    burned: int
    bond: int
    """Wei, back to the challenger."""


@dataclass(frozen=True, slots=True)
class CreditWithdrawn:
    place: Place
    token: Address
    account: Address
    amount: int


Verdict = Committed | FaultProven | ChallengeOpened | ChallengeAnswered | ChallengeResolved | CreditWithdrawn
"""All that Slashing says."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined, successful transaction and the events of Penstock's contracts in it."""

    transaction: str
    block: int
    timestamp: int
    gas_used: int
    gas_price: int
    events: Sequence[Event] = field(default=())
    verdicts: Sequence[Verdict] = field(default=())
    """What Slashing said in it."""
    licences: Sequence[LicenceEvent] = field(default=())
    """What the catalogue and License said in it."""

    @property
    def fee(self) -> int:
        """What the sender paid for gas, in wei."""
        return self.gas_used * self.gas_price
