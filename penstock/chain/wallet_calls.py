"""Calls of an agent wallet as values; `Chain.at_wallet` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.caps import Caps
from penstock.chain.calls import Call
from penstock.licences import LicenceId, ProductId, Tier
from penstock.types import Address, ChannelOrder, OfferId, Order, StreamId, StreamKey, unhex
from penstock.wallets import Grant

_WORDS = {
    "open": "opening the stream from the wallet",
    "open_for": "opening the ordered stream from its wallet",
    "top_up": "topping up the stream from the wallet",
    "cancel": "cancelling the wallet's stream",
    "cancel_for": "cancelling the stream for its wallet",
    "open_channel": "opening the channel from the wallet",
    "open_channel_for": "opening the ordered channel from its wallet",
    "top_up_channel": "topping up the channel from the wallet",
    "request_close": "asking to close the wallet's channel",
    "reclaim": "taking back the rest of the wallet's channel",
    "buy_license": "buying the licence from the wallet",
    "renew_license": "renewing the wallet's licence",
    "refund_license": "giving back the wallet's licence",
    "complete_license": "completing the wallet's purchase",
    "set_license_key": "changing the session key of the wallet's licence",
    "release": "releasing what is over",
    "set_caps": "changing the wallet's caps",
    "set_key": "giving a key of the wallet",
    "revoke_key": "revoking a key of the wallet",
    "allow_payee": "changing the wallet's list of payees",
    "allow_offer": "changing the wallet's list of offers",
    "set_lists": "changing whether the wallet's lists bind",
    "pause": "pausing the wallet",
    "unpause": "ending the wallet's pause",
    "set_guardian": "changing the wallet's guardian",
    "transfer_ownership": "offering the wallet",
    "accept_ownership": "accepting the wallet",
    "withdraw": "withdrawing from the wallet",
    "withdraw_vault": "withdrawing from the wallet's vault balance",
}


def _call(function: str, *args: Any) -> Call:
    return Call(function, args, _WORDS[function], contract="AgentWallet")


def _parties(key: StreamKey) -> tuple[Any, ...]:
    return key.payee, key.token, key.session_key, unhex(key.offer_id)


def open(key: StreamKey, rate: int, duration: int) -> Call:
    return _call("open", *_parties(key), rate, duration)


def open_for(order: Order, signature: bytes) -> Call:
    return _call("open_for", order.as_tuple(), signature)


def top_up(key: StreamKey, duration: int) -> Call:
    return _call("top_up", *_parties(key), duration)


def cancel(key: StreamKey) -> Call:
    return _call("cancel", *_parties(key))


def cancel_for(key: StreamKey, deadline: int, signature: bytes) -> Call:
    return _call("cancel_for", *_parties(key), deadline, signature)


def open_channel(key: StreamKey, deposit: int) -> Call:
    return _call("open_channel", *_parties(key), deposit)


def open_channel_for(order: ChannelOrder, signature: bytes) -> Call:
    return _call("open_channel_for", order.as_tuple(), signature)


def top_up_channel(key: StreamKey, amount: int) -> Call:
    return _call("top_up_channel", *_parties(key), amount)


def request_close(key: StreamKey) -> Call:
    return _call("request_close", *_parties(key))


def reclaim(key: StreamKey) -> Call:
    return _call("reclaim", *_parties(key))


def buy_license(
    product: ProductId, *, release: int, tier: Tier, quantity: int, max_cost: int, session_key: Address
) -> Call:
    return _call("buy_license", product, release, int(tier), quantity, max_cost, session_key)


def renew_license(license: LicenceId, quantity: int, max_cost: int) -> Call:
    return _call("renew_license", license, quantity, max_cost)


def refund_license(license: LicenceId) -> Call:
    return _call("refund_license", license)


def complete_license(license: LicenceId) -> Call:
    return _call("complete_license", license)


def set_license_key(license: LicenceId, session_key: Address) -> Call:
    return _call("set_license_key", license, session_key)


def release(token: Address, ids: Sequence[StreamId]) -> Call:
    """1 to 50 of them."""
    return _call("release", token, [unhex(id) for id in ids])


def set_caps(token: Address, caps: Caps) -> Call:
    return _call("set_caps", token, caps.as_tuple())


def set_key(grant: Grant) -> Call:
    return _call("set_key", *grant.as_tuple())


def revoke_key(key: Address) -> Call:
    return _call("revoke_key", key)


def allow_payee(payee: Address, allowed: bool) -> Call:
    return _call("allow_payee", payee, allowed)


def allow_offer(offer: OfferId, allowed: bool) -> Call:
    return _call("allow_offer", unhex(offer), allowed)


def set_lists(payees_only: bool, offers_only: bool) -> Call:
    return _call("set_lists", payees_only, offers_only)


def pause() -> Call:
    return _call("pause")


def unpause() -> Call:
    return _call("unpause")


def set_guardian(guardian: Address) -> Call:
    return _call("set_guardian", guardian)


def transfer_ownership(to: Address) -> Call:
    return _call("transfer_ownership", to)


def accept_ownership() -> Call:
    return _call("accept_ownership")


def withdraw(token: Address, amount: int, to: Address) -> Call:
    return _call("withdraw", token, amount, to)


def withdraw_vault(token: Address, amount: int, to: Address) -> Call:
    return _call("withdraw_vault", token, amount, to)
