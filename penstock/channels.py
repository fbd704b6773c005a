"""A voucher channel as the chain holds it: the Python twin of `contracts/modules/channels.vy`.

A payer locks a deposit; its session key signs vouchers, each for the whole sum owed so far; the payee settles
the highest one. Amounts are integers of the token's base units, times are seconds since 1970 as blocks carry them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CLOSE_DELAY", "MAX_DEPOSIT", "ChannelState"]

CLOSE_DELAY = 15 * 60
"""Seconds between the payer's request to close and its reclaim."""

MAX_DEPOSIT = 2**96 - 1
"""The highest deposit of a channel, top-ups included: base units."""

_MAX_TIME = 2**40 - 1


@dataclass(frozen=True, slots=True)
class ChannelState:
    """A channel. A deposit of zero: there never was such a channel."""

    deposit: int
    """Base units locked in all."""
    settled: int
    """Base units paid to the payee so far."""
    requested_at: int
    """Second of the payer's request to close; 0: none."""
    finished: bool

    @classmethod
    def from_word(cls, word: int) -> ChannelState:
        """The channel that a storage word describes."""
        return cls(word & MAX_DEPOSIT, word >> 96 & MAX_DEPOSIT, word >> 192 & _MAX_TIME, bool(word >> 232 & 1))

    @property
    def word(self) -> int:
        """The storage word that describes this channel. ValueError where it can be no channel's."""
        if not 0 <= self.settled <= self.deposit <= MAX_DEPOSIT:
            raise ValueError("not 0 <= settled <= deposit < 2**96")
        if not 0 <= self.requested_at <= _MAX_TIME:
            raise ValueError("the time of the request does not fit 40 bits")
        return self.deposit | self.settled << 96 | self.requested_at << 192 | self.finished << 232

    @property
    def running(self) -> bool:
        """Whether it exists and has not finished."""
        return self.deposit > 0 and not self.finished

    @property
    def locked(self) -> int:
        """What the contract still holds for it: base units."""
        return self.deposit - self.settled if self.running else 0

    @property
    def reclaimable_at(self) -> int | None:
        """The first second at which the payer may take the rest back; None: it has not asked, or it is over."""
        return self.requested_at + CLOSE_DELAY if self.running and self.requested_at else None

    def added_by(self, cumulative: int) -> int:
        """What a voucher for `cumulative` would add to what is settled: base units."""
        return max(0, cumulative - self.settled) if self.running else 0

    def topped_up(self, amount: int) -> ChannelState:
        return replace(self, deposit=self.deposit + amount)

    def settled_to(self, cumulative: int) -> ChannelState:
        """After a voucher; one that adds nothing changes nothing."""
        return replace(self, settled=self.settled + self.added_by(cumulative))

    def requested(self, now: int) -> ChannelState:
        return replace(self, requested_at=now)

    def closed(self, cumulative: int = 0) -> ChannelState:
        """After its end, the last voucher settled."""
        return replace(self.settled_to(cumulative), finished=True)
