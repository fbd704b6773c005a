"""The consumer: sessions with providers, and the closing of streams whatever happened to them."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType

from penstock.consumer.base import Gasless
from penstock.consumer.both import BothSession
from penstock.consumer.channel import ChannelSession
from penstock.consumer.closing_channels import ChannelCloser
from penstock.consumer.closing_streams import StreamCloser
from penstock.consumer.core import ConsumerCore
from penstock.consumer.market import Listing
from penstock.consumer.recovery import recover
from penstock.consumer.session import Session
from penstock.errors import ConfigError, PenstockError
from penstock.journal import ChannelRecord, Record
from penstock.types import StreamId


class Consumer(ConsumerCore):
    """Buys with one account on one chain. Use as an async context manager, or call `aclose`.

    `on_news` hears of each step as it happens, `on_warning` of what a provider leaves unproven. `clock` gives Unix
    seconds. `allow_private`: whether a gateway may live on this machine or a private network; by default on local
    chains alone. `caps` by token bound what is spent, by the journal's word alone: whoever has the account's key is not
    bound by them. Given any, tokens without caps are not spent. With a `WalletAccount` the wallet pays.
    """

    async def __aenter__(self) -> Consumer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def channel_session(
        self, listing: Listing, *, deposit: int | None = None, gasless: Gasless = "auto"
    ) -> ChannelSession:
        """Buy tokens from a listing, up to a deposit in base units; enter the result with `async with`.

        `gasless`: the provider opens the channel from our signature and pays the gas; it closes every channel, and
        what is left is then in the vault. Raises what `session` does.
        """
        if not listing.offer.terms.by_token or listing.offer.terms.by_second:
            raise ConfigError(f"offer {listing.offer.id[:10]} is not sold by the token alone; choose another offer")
        return ChannelSession(self, listing, deposit, gasless)

    def both_session(
        self,
        listing: Listing,
        *,
        duration: int | None = None,
        deposit: int | None = None,
        gasless: Gasless = "auto",
    ) -> BothSession:
        """Buy from a listing that charges for time and for tokens: a stream of up to `duration` seconds for the one, a
        channel with a deposit for the other. Enter the result with `async with`; what `session` and
        `channel_session` say holds for both."""
        if not (listing.offer.terms.by_token and listing.offer.terms.by_second):
            raise ConfigError(f"offer {listing.offer.id[:10]} is not sold by second and token; choose another offer")
        return BothSession(self, listing, duration, deposit, gasless)

    def session(self, listing: Listing, *, duration: int | None = None, gasless: Gasless = "auto") -> Session:
        """Buy from a listing for up to `duration` seconds; enter the result with `async with`.

        `gasless`: the provider opens and closes the stream from our signatures and pays the gas. "auto": where
        the account has no coins for gas.

        On entering raises OfferMismatch, InsufficientFunds, ConfigError, ChainErrors and GatewayErrors; no stream
        stays open then. StreamLeftOpen where one does after all, on entering or leaving.
        """
        if listing.offer.terms.by_token or not listing.offer.terms.by_second:
            raise ConfigError(f"offer {listing.offer.id[:10]} is not sold by the second alone; choose another offer")
        return Session(self, listing, duration, gasless)

    async def reconcile(self) -> list[Record]:
        """Close whatever processes that are gone left open, on this chain and of this account.

        Returns those streams as they are afterwards: CLOSED, VOID, still INTENDED where an open may yet be mined,
        or OPEN with the problem. Streams of processes that live are left alone.
        """
        found = []
        with self.journal.adopt() as records:
            for record in self.mine(records):
                try:
                    found.append(await self.stop(record.id))
                except PenstockError as error:
                    self.journal.note(record.id, str(error))
                    found.append(self.record(record.id))
        return found

    async def reconcile_channels(self) -> list[ChannelRecord]:
        """The same for channels: those that a provider does not close are asked to close, and taken back when the
        contract lets us, 15 minutes later."""
        found = []
        with self.journal.adopt_channels() as records:
            for record in self.mine(records):
                with suppress(PenstockError):  # it is in the record
                    await self.stop_channel(record.id)
                found.append(self.channel_record(record.id))
        return found

    async def stop_channel(self, channel: StreamId, *, bearer: str = "", refused: bool = False) -> ChannelRecord:
        """Close a channel on record, and return its final record. Whatever state it is in. `refused`: the provider
        said no to opening it.

        The provider closes it at once; where it does not, the contract is asked to, and from 15 minutes later on the
        next call takes the rest back: that needs gas. Raises StreamLeftOpen until then.
        """
        return await ChannelCloser(self).stop(channel, bearer=bearer, refused=refused)

    async def recover_from_chain(self, first_block: int) -> list[Record | ChannelRecord]:
        """Put on record, and stop, every running stream and channel that the chain says this account opened. The
        vouchers that were signed are their provider's to show.

        For a journal that was lost. Reads all events from `first_block` on.
        """
        return await recover(self, first_block)

    async def stop(self, stream: StreamId, *, bearer: str = "", refused: bool = False) -> Record:
        """Close a stream on record, the refund to the account's wallet, and return its final record.

        Whatever state it is in: nothing happens to one that is over. `bearer` is its session's token, where
        there still is one; `refused`: the provider said no to opening it.

        Raises StreamLeftOpen where it could not be closed, saying what is locked until when.
        """
        return await StreamCloser(self).stop(stream, bearer=bearer, refused=refused)
