"""StreamPay's books, kept from nothing but its events: what it owes to whom, in every token.

    books = Books()
    for event in await chain.events(first, last):
        books.apply(event)
    books.liabilities(token)  # equals the contract's balance, less what was donated to it

The rules are those of `docs/spec.md`. Amounts are base units.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from penstock.accrual import StreamState
from penstock.channels import ChannelState
from penstock.events import (
    ChannelClosed,
    ChannelCloseRequested,
    ChannelOpened,
    ChannelSettled,
    ChannelToppedUp,
    Closed,
    Deposited,
    Event,
    KeeperPaid,
    Opened,
    ToppedUp,
    VaultSpent,
    VaultWithdrawn,
    Withdrawn,
)
from penstock.types import ZERO_ADDRESS, Address, StreamId, StreamKey


@dataclass
class Books:
    """Events must be applied in the order of the chain, from the block of the deployment on."""

    vault: dict[tuple[Address, Address], int] = field(default_factory=lambda: defaultdict(int))
    """Balance by (token, account)."""
    streams: dict[StreamId, tuple[StreamKey, StreamState]] = field(default_factory=dict)
    """The open ones; a stream that was closed, or paid up to its end, is gone."""
    channels: dict[StreamId, tuple[StreamKey, ChannelState]] = field(default_factory=dict)
    """All that ever were: a finished one stays."""

    def apply(self, event: Event) -> None:
        match event:
            case Deposited():
                self.vault[event.token, event.account] += event.amount
            case VaultWithdrawn() | VaultSpent():
                self.vault[event.token, event.account] -= event.amount
            case Opened():
                self.vault[event.key.token, event.key.payer] -= event.from_vault
                self.streams[event.id] = (event.key, StreamState(event.start, event.start, event.end, event.rate))
            case ToppedUp():
                key, state = self.streams[event.id]
                self.vault[key.token, event.funder] -= event.from_vault
                self.streams[event.id] = (key, replace(state, end=event.end))
            case Withdrawn():
                key, state = self.streams[event.id]
                until = min(event.place.timestamp, state.end)
                if until == state.end:
                    del self.streams[event.id]
                else:
                    self.streams[event.id] = (key, replace(state, last=until))
                if event.to == ZERO_ADDRESS:
                    self.vault[key.token, key.payee] += event.amount
            case Closed():
                key, _ = self.streams.pop(event.id)
                self.vault[key.token, key.payee] += event.paid
                if event.to == ZERO_ADDRESS:
                    self.vault[key.token, key.payer] += event.refund
            case KeeperPaid():
                self.vault[event.token, event.payee] -= event.amount
                self.vault[event.token, event.keeper] += event.amount
            case ChannelOpened():
                self.vault[event.key.token, event.key.payer] -= event.from_vault
                self.channels[event.id] = (event.key, ChannelState(event.deposit, 0, 0, False))
            case ChannelToppedUp():
                key, channel = self.channels[event.id]
                self.vault[key.token, event.funder] -= event.from_vault
                self.channels[event.id] = (key, channel.topped_up(event.amount))
            case ChannelSettled():
                key, channel = self.channels[event.id]
                self.vault[key.token, key.payee] += event.cumulative - channel.settled
                self.channels[event.id] = (key, replace(channel, settled=event.cumulative))
            case ChannelCloseRequested():
                key, channel = self.channels[event.id]
                self.channels[event.id] = (key, channel.requested(event.place.timestamp))
            case ChannelClosed():
                key, channel = self.channels[event.id]
                self.vault[key.token, key.payee] += event.cumulative - channel.settled
                if event.to == ZERO_ADDRESS:
                    self.vault[key.token, key.payer] += event.refund
                self.channels[event.id] = (key, replace(channel, settled=event.cumulative, finished=True))

    def liabilities(self, token: Address) -> int:
        """What the contract owes in this token: vault balances, and what streams and channels still hold."""
        vault = sum(amount for (held, _), amount in self.vault.items() if held == token)
        streams = sum(
            state.deposit - state.cost(state.last) for key, state in self.streams.values() if key.token == token
        )
        channels = sum(
            channel.deposit - channel.settled
            for key, channel in self.channels.values()
            if key.token == token and not channel.finished
        )
        return vault + streams + channels

    def tokens(self) -> list[Address]:
        """Every token that was ever paid in."""
        held = {token for token, _ in self.vault}
        return sorted(held | {key.token for key, _ in (*self.streams.values(), *self.channels.values())})
