"""From each event to the rows that change by it. The rules are those of `docs/spec.md`.

Balances and states follow the contracts exactly. Counts of sessions, volumes and prices take a payment for a
provider's only where the offer that it names binds it: same payee, token and rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from agents.explorer import _schema as schema
from agents.explorer._decode import Logged, Values
from agents.explorer._fold_licences import RULES as LICENCE_RULES
from agents.explorer._fold_licences import LicenceFold
from agents.explorer._rows import Row, Rows
from penstock.accrual import flow
from penstock.faults import BURNED
from penstock.types import NATIVE, ZERO_ADDRESS, Address

HOUR = 3600


_NUMBERED = {"license": "licence", "token_id": "licence", "product": "product"}
_SUBJECTS = ("wallet", "id", "offer_id", "provider", "account", "payee", "guardian", "token", "commitment")


def subject(event: Logged) -> str:
    """The id or account that an event is about; products and licences, which have numbers, as `licence 7`."""
    for name, words in _NUMBERED.items():
        if name in event.values:
            return f"{words} {event.values[name]}"
    for name in _SUBJECTS:
        if name in event.values:
            return str(event.values[name])
    return event.contract


class Fold(LicenceFold):
    """Applies events in the order of the chain."""

    def __init__(self, rows: Rows, stake_asset: Address) -> None:
        super().__init__(rows)
        self._stake_asset = stake_asset

    def apply(self, event: Logged) -> None:
        rule = _RULES.get((event.contract, event.name))
        if rule is not None:
            self._rows.enter(event.block)
            rule(self, event, event.values)

    # --- StreamPay: the vault ---

    def _owe(self, contract: str, token: str, account: str, amount: int) -> None:
        if amount == 0:
            return
        if self._rows.find(schema.balances, contract, token, account) is None:
            self._rows.put(
                schema.balances, {"contract": contract, "token": token, "account": account, "amount": amount}
            )
        else:
            self._rows.edit(schema.balances, contract, token, account)["amount"] += amount

    def _vault(self, token: str, account: str, amount: int) -> None:
        self._owe("StreamPay", token, account, amount)

    def _deposited(self, _: Logged, v: Values) -> None:
        self._vault(v["token"], v["account"], v["amount"])

    def _vault_withdrawn(self, _: Logged, v: Values) -> None:
        self._vault(v["token"], v["account"], -v["amount"])

    def _keeper_paid(self, _: Logged, v: Values) -> None:
        self._vault(v["token"], v["payee"], -v["amount"])
        self._vault(v["token"], v["keeper"], v["amount"])

    # --- StreamPay: streams ---

    def _opened(self, event: Logged, v: Values) -> None:
        self._vault(v["token"], v["payer"], -v["from_vault"])
        offer = self._offer(v)
        if offer is not None and offer["rate"] != v["rate"]:
            offer = None
        self._rows.put(
            schema.streams,
            {
                "seq": event.seq,
                **{name: v[name] for name in ("id", "payer", "payee", "token", "session_key", "offer_id")},
                "provider": offer and offer["provider"],
                "model": offer and offer["model"],
                "rate": v["rate"],
                "start": v["start"],
                "last": v["start"],
                "end": v["end"],
                "status": "open",
                "stop": None,
                "paid": 0,
                "refund": 0,
                "opened_transaction": event.transaction,
                "closed_at": None,
                "closed_seq": None,
            },
            fresh=True,
        )
        self._begin(event, v["token"], offer, "streams")
        if offer is not None:
            self._trade(event, offer, v["rate"])

    def _topped_up(self, _: Logged, v: Values) -> None:
        stream = self._rows.stream(v["id"])
        self._vault(stream["token"], v["funder"], -v["from_vault"])
        stream["end"] = v["end"]

    def _withdrawn(self, event: Logged, v: Values) -> None:
        stream = self._rows.stream(v["id"])
        until = min(event.timestamp, stream["end"])
        self._spread(stream, stream["last"], until)
        stream["last"] = until
        stream["paid"] += v["amount"]
        if v["to"] == ZERO_ADDRESS:
            self._vault(stream["token"], stream["payee"], v["amount"])
        if until == stream["end"]:
            self._end(event, stream, "spent", until)

    def _closed(self, event: Logged, v: Values) -> None:
        stream = self._rows.stream(v["id"])
        self._spread(stream, stream["last"], v["stop"])
        stream["last"] = v["stop"]
        stream["paid"] += v["paid"]
        stream["refund"] = v["refund"]
        self._vault(stream["token"], stream["payee"], v["paid"])
        if v["to"] == ZERO_ADDRESS:
            self._vault(stream["token"], stream["payer"], v["refund"])
        self._end(event, stream, "closed", v["stop"])

    def _end(self, event: Logged, stream: Row, status: str, stop: int) -> None:
        stream |= {"status": status, "stop": stop, "closed_at": event.timestamp, "closed_seq": event.seq}

    # --- StreamPay: channels ---

    def _channel_opened(self, event: Logged, v: Values) -> None:
        self._vault(v["token"], v["payer"], -v["from_vault"])
        offer = self._offer(v)
        if offer is not None and not offer["completion_price"]:
            offer = None
        self._rows.put(
            schema.channels,
            {
                **{name: v[name] for name in ("id", "payer", "payee", "token", "session_key", "offer_id")},
                "provider": offer and offer["provider"],
                "model": offer and offer["model"],
                "deposit": v["deposit"],
                "settled": 0,
                "refund": 0,
                "requested_at": 0,
                "status": "open",
                "opened_at": event.timestamp,
                "opened_seq": event.seq,
                "opened_transaction": event.transaction,
                "closed_at": None,
            },
            fresh=True,
        )
        self._begin(event, v["token"], offer, "channels")

    def _channel_topped_up(self, _: Logged, v: Values) -> None:
        channel = self._rows.edit(schema.channels, v["id"])
        channel["deposit"] += v["amount"]
        self._vault(channel["token"], v["funder"], -v["from_vault"])

    def _channel_settled(self, event: Logged, v: Values) -> None:
        channel = self._rows.edit(schema.channels, v["id"])
        added = v["cumulative"] - channel["settled"]
        channel["settled"] = v["cumulative"]
        self._vault(channel["token"], channel["payee"], added)
        if added:
            self._hour(event.timestamp, channel["token"], channel["provider"])["by_token"] += added

    def _channel_close_requested(self, event: Logged, v: Values) -> None:
        self._rows.edit(schema.channels, v["id"]).update(requested_at=event.timestamp, status="closing")

    def _channel_closed(self, event: Logged, v: Values) -> None:
        self._channel_settled(event, v)
        channel = self._rows.edit(schema.channels, v["id"])
        channel |= {"status": "closed", "refund": v["refund"], "closed_at": event.timestamp}
        if v["to"] == ZERO_ADDRESS:
            self._vault(channel["token"], channel["payer"], v["refund"])

    # --- what binds a payment to an offer, and what is counted by it ---

    def _offer(self, v: Values) -> Row | None:
        offer = self._rows.find(schema.offers, v["offer_id"])
        if offer is None or offer["token"] != v["token"]:
            return None
        provider = self._rows.find(schema.providers, offer["provider"])
        return offer if provider and provider["payee"] == v["payee"] else None

    def _begin(self, event: Logged, token: str, offer: Row | None, kind: str) -> None:
        self._hour(event.timestamp, token, offer["provider"] if offer else None)[kind] += 1
        if offer is not None:
            self._rows.edit(schema.offers, offer["id"])["sessions"] += 1
            self._rows.edit(schema.providers, offer["provider"])["sessions"] += 1

    def _trade(self, event: Logged, offer: Row, rate: int) -> None:
        key = (_hour_of(event.timestamp), offer["model"], offer["token"])
        if self._rows.find(schema.trades, *key) is None:
            names = ("hour", "model", "token")
            self._rows.put(
                schema.trades,
                dict(zip(names, key, strict=True)) | {"count": 1, "total": rate, "lowest": rate, "highest": rate},
            )
            return
        trade = self._rows.edit(schema.trades, *key)
        trade["count"] += 1
        trade["total"] += rate
        trade["lowest"] = min(trade["lowest"], rate)
        trade["highest"] = max(trade["highest"], rate)

    def _spread(self, stream: Row, since: int, until: int) -> None:
        """What the stream cost between two seconds, by hour: the parts add up to the whole."""
        for moment, amount in spread(stream["rate"], stream["start"], since, until):
            if amount:
                self._hour(moment, stream["token"], stream["provider"])["flowed"] += amount

    def _hour(self, moment: int, token: str, provider: str | None) -> Row:
        key = (_hour_of(moment), token, provider or "")
        if self._rows.find(schema.hours, *key) is None:
            names = ("hour", "token", "provider")
            zero = {"flowed": 0, "by_token": 0, "streams": 0, "channels": 0}
            return self._rows.put(schema.hours, dict(zip(names, key, strict=True)) | zero)
        return self._rows.edit(schema.hours, *key)

    # --- Registry ---

    def _provider_registered(self, event: Logged, v: Values) -> None:
        zero = dict.fromkeys(
            (
                *("stake", "unbonding", "frozen", "slashed", "active_offers", "sessions"),
                *("faults", "challenges", "challenges_lost"),
            ),
            0,
        )
        kept = {name: v[name] for name in ("owner", "payee", "signer", "service", "agent_id", "endpoint")}
        described = {name: v[name] for name in ("metadata_uri", "metadata_hash")}
        self._rows.put(
            schema.providers,
            {"id": v["provider"], **kept, **described, "registered_at": event.timestamp, **zero},
        )

    def _provider_changed(self, _: Logged, v: Values) -> None:
        provider = self._rows.edit(schema.providers, v["provider"])
        provider |= {name: value for name, value in v.items() if name in provider}

    def _offer_created(self, event: Logged, v: Values) -> None:
        self._rows.put(
            schema.offers,
            {
                "id": v["offer_id"],
                "provider": v["provider"],
                "number": v["number"],
                **v["terms"],
                "active": True,
                "created_at": event.timestamp,
                "sessions": 0,
            },
        )
        self._rows.edit(schema.providers, v["provider"])["active_offers"] += 1

    def _offer_active_changed(self, _: Logged, v: Values) -> None:
        offer = self._rows.edit(schema.offers, v["offer_id"])
        if offer["active"] != v["active"]:
            offer["active"] = v["active"]
            self._rows.edit(schema.providers, v["provider"])["active_offers"] += 1 if v["active"] else -1

    # --- agents' wallets ---

    def _wallet_created(self, event: Logged, v: Values) -> None:
        parties = {"id": v["wallet"], "owner": v["owner"], "guardian": v["guardian"]}
        made = {**parties, "paused": False, "created_at": event.timestamp}
        self._rows.put(schema.wallets, made, fresh=True)

    def _wallet_changed(self, _: Logged, v: Values) -> None:
        wallet = self._rows.edit(schema.wallets, v["wallet"])
        wallet |= {name: value for name, value in v.items() if name in wallet}

    def _wallet_token(self, v: Values) -> Row:
        key = (v["wallet"], v["token"])
        if self._rows.find(schema.wallet_tokens, *key) is None:
            zero = dict.fromkeys(("payment", "hour", "day", "week", "open", "spent"), 0)
            return self._rows.put(schema.wallet_tokens, {"wallet": v["wallet"], "token": v["token"], **zero})
        return self._rows.edit(schema.wallet_tokens, *key)

    def _caps_changed(self, _: Logged, v: Values) -> None:
        self._wallet_token(v).update({name: v[name] for name in ("payment", "hour", "day", "week")})

    def _committed(self, _: Logged, v: Values) -> None:
        self._wallet_token(v)["open"] += v["amount"]

    def _released(self, _: Logged, v: Values) -> None:
        row = self._wallet_token(v)
        row["open"] -= v["committed"]
        row["spent"] += v["spent"]

    # --- Staking ---

    def _staked(self, _: Logged, v: Values) -> None:
        self._rows.edit(schema.providers, v["provider"])["stake"] = v["stake"]

    def _unbond_requested(self, _: Logged, v: Values) -> None:
        provider = self._rows.edit(schema.providers, v["provider"])
        provider["stake"] = v["stake"]
        provider["unbonding"] += v["amount"]

    def _unbond_cancelled(self, _: Logged, v: Values) -> None:
        provider = self._rows.edit(schema.providers, v["provider"])
        provider["stake"] = v["stake"]
        provider["unbonding"] -= v["amount"]

    def _unstaked(self, _: Logged, v: Values) -> None:
        # What leaves comes from the queue.
        self._rows.edit(schema.providers, v["provider"])["unbonding"] -= v["amount"]

    def _slashed(self, _: Logged, v: Values) -> None:
        provider = self._rows.edit(schema.providers, v["provider"])
        provider |= {"stake": v["stake"], "unbonding": v["unbonding"]}
        provider["slashed"] += v["amount"]

    def _frozen(self, _: Logged, v: Values) -> None:
        self._rows.edit(schema.providers, v["provider"])["frozen"] = v["frozen"]

    # --- Slashing ---

    def _credit(self, token: str, account: str, amount: int) -> None:
        self._owe("Slashing", token, account, amount)

    def _fault_proven(self, event: Logged, v: Values) -> None:
        taken = ("provider", "kind", "session_id", "start", "reporter", "victim")
        amounts = ("slashed", "to_reporter", "to_victim", "burned")
        self._rows.put(
            schema.faults,
            {
                "seq": event.seq,
                **{name: v[name] for name in taken + amounts},
                "receipt_seq": v["seq"],
                "timestamp": event.timestamp,
                "transaction": event.transaction,
            },
            fresh=True,
        )
        self._rows.edit(schema.providers, v["provider"])["faults"] += 1
        self._credit(self._stake_asset, v["reporter"], v["to_reporter"])
        self._credit(self._stake_asset, v["victim"], v["to_victim"])
        self._credit(self._stake_asset, BURNED, v["burned"])

    def _challenge_opened(self, event: Logged, v: Values) -> None:
        self._rows.put(
            schema.challenges,
            {
                "id": v["id"],
                "seq": event.seq,
                "provider": v["provider"],
                "challenger": v["challenger"],
                "session_id": v["accept"]["session_id"],
                "bond": v["bond"],
                "frozen": v["frozen"],
                "status": "open",
                "opened_at": event.timestamp,
                "ended_at": None,
                "slashed": 0,
            },
        )
        self._rows.edit(schema.providers, v["provider"])["challenges"] += 1

    def _challenge_answered(self, event: Logged, v: Values) -> None:
        self._rows.edit(schema.challenges, v["id"]).update(status="answered", ended_at=event.timestamp)
        self._credit(NATIVE, v["to"], v["bond"])

    def _challenge_resolved(self, event: Logged, v: Values) -> None:
        challenge = self._rows.edit(schema.challenges, v["id"])
        challenge |= {"status": "lost", "ended_at": event.timestamp, "slashed": v["slashed"]}
        self._rows.edit(schema.providers, v["provider"])["challenges_lost"] += 1
        self._credit(self._stake_asset, v["challenger"], v["to_challenger"])
        self._credit(self._stake_asset, v["victim"], v["to_victim"])
        self._credit(self._stake_asset, BURNED, v["burned"])
        self._credit(NATIVE, v["challenger"], v["bond"])

    def _credit_withdrawn(self, _: Logged, v: Values) -> None:
        self._credit(v["token"], v["account"], -v["amount"])


def spread(rate: int, start: int, since: int, until: int) -> Iterator[tuple[int, int]]:
    """What a stream costs from `since` to `until`, hour by hour: (a second of the hour, base units)."""
    while since < until:
        edge = min(_hour_of(since) + HOUR, until)
        yield since, flow(rate, edge - start) - flow(rate, since - start)
        since = edge


def _hour_of(moment: int) -> int:
    return moment - moment % HOUR


_RULES: dict[tuple[str, str], Callable[[Any, Logged, Values], None]] = {
    ("StreamPay", "Deposited"): Fold._deposited,
    ("StreamPay", "VaultWithdrawn"): Fold._vault_withdrawn,
    ("StreamPay", "VaultSpent"): Fold._vault_withdrawn,
    ("StreamPay", "KeeperPaid"): Fold._keeper_paid,
    ("StreamPay", "Opened"): Fold._opened,
    ("StreamPay", "ToppedUp"): Fold._topped_up,
    ("StreamPay", "Withdrawn"): Fold._withdrawn,
    ("StreamPay", "Closed"): Fold._closed,
    ("StreamPay", "ChannelOpened"): Fold._channel_opened,
    ("StreamPay", "ChannelToppedUp"): Fold._channel_topped_up,
    ("StreamPay", "ChannelSettled"): Fold._channel_settled,
    ("StreamPay", "ChannelCloseRequested"): Fold._channel_close_requested,
    ("StreamPay", "ChannelClosed"): Fold._channel_closed,
    ("Registry", "ProviderRegistered"): Fold._provider_registered,
    ("Registry", "EndpointChanged"): Fold._provider_changed,
    ("Registry", "MetadataChanged"): Fold._provider_changed,
    ("Registry", "PayeeChanged"): Fold._provider_changed,
    ("Registry", "SignerChanged"): Fold._provider_changed,
    ("Registry", "OwnershipTransferred"): Fold._provider_changed,
    ("Registry", "OfferCreated"): Fold._offer_created,
    ("Registry", "OfferActiveChanged"): Fold._offer_active_changed,
    ("AgentWalletFactory", "Created"): Fold._wallet_created,
    ("AgentWallet", "OwnershipTransferred"): Fold._wallet_changed,
    ("AgentWallet", "GuardianChanged"): Fold._wallet_changed,
    ("AgentWallet", "PauseChanged"): Fold._wallet_changed,
    ("AgentWallet", "CapsChanged"): Fold._caps_changed,
    ("AgentWallet", "Committed"): Fold._committed,
    ("AgentWallet", "Released"): Fold._released,
    ("Staking", "Staked"): Fold._staked,
    ("Staking", "UnbondRequested"): Fold._unbond_requested,
    ("Staking", "UnbondCancelled"): Fold._unbond_cancelled,
    ("Staking", "Unstaked"): Fold._unstaked,
    ("Staking", "Slashed"): Fold._slashed,
    ("Staking", "StakeFrozen"): Fold._frozen,
    ("Staking", "StakeUnfrozen"): Fold._frozen,
    ("Slashing", "FaultProven"): Fold._fault_proven,
    ("Slashing", "ChallengeOpened"): Fold._challenge_opened,
    ("Slashing", "ChallengeAnswered"): Fold._challenge_answered,
    ("Slashing", "ChallengeResolved"): Fold._challenge_resolved,
    ("Slashing", "CreditWithdrawn"): Fold._credit_withdrawn,
    **LICENCE_RULES,
}
