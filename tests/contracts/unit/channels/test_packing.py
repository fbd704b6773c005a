"""The words in which channels and streams are stored: round trip, no overlap, bounds, on StreamPay's own storage"""

from __future__ import annotations

from itertools import product

import pytest
from eth_abi import encode
from eth_utils import keccak

from penstock.accrual import MAX_TIME, StreamState
from penstock.channels import CLOSE_DELAY, MAX_DEPOSIT, ChannelState
from tests.contracts.harness import (
    COIN,
    DURATION,
    MAX,
    OFFER,
    RATE,
    SESSION,
    Actor,
    Money,
    Terms,
    fill_vault,
    open_stream,
    state_of,
)
from tests.contracts.vouchers import (
    DEPOSIT,
    channel_of,
    close,
    open_channel,
    reclaim,
    request_close,
    settle,
    top_up,
    voucher,
)
from tests.fastchain import Chain, Contract

SPARE_OF_CHANNELS = list(range(233, 256))
SPARE_OF_STREAMS = list(range(216, 256))


class Storage:
    """StreamPay's words by id, read and written behind its back."""

    def __init__(self, evm: Chain, pay: Contract, slot: int) -> None:
        self.evm, self.pay, self.slot = evm, pay, slot

    def _place(self, id: bytes) -> str:
        return "0x" + keccak(encode(["uint256", "bytes32"], [self.slot, id])).hex()

    def __getitem__(self, id: bytes) -> int:
        return int(self.evm.rpc("eth_getStorageAt", self.pay.address, self._place(id), "latest"), 16)

    def __setitem__(self, id: bytes, word: int) -> None:
        self.evm.rpc("anvil_setStorageAt", self.pay.address, self._place(id), f"0x{word:064x}")


def find(evm: Chain, pay: Contract, id: bytes, word: int) -> Storage:
    """The mapping that holds this word under this id."""
    (found,) = (storage for slot in range(32) if (storage := Storage(evm, pay, slot))[id] == word)
    return found


@pytest.fixture
def terms(payer: Actor, payee: Actor) -> Terms:
    return Terms(payer, payee, COIN)


@pytest.fixture
def channels(evm: Chain, pay: Contract, coins: Money, terms: Terms) -> Storage:
    open_channel(pay, coins, terms)
    return find(evm, pay, terms.id, ChannelState(DEPOSIT, 0, 0, False).word)


@pytest.fixture
def streams(evm: Chain, pay: Contract, coins: Money, terms: Terms) -> Storage:
    open_stream(pay, coins, terms)
    return find(evm, pay, terms.id, StreamState(evm.now, evm.now, evm.now + DURATION, RATE).word)


def test_every_bit_of_a_channels_word_belongs_to_one_field(pay: Contract, channels: Storage, terms: Terms) -> None:
    """Reading is a mask and a shift, so that single bits show all: each is in one field, or in none."""
    fields = {"deposit": 96, "settled": 96, "requested_at": 40, "finished": 1}
    bit = 0
    for at, (field, width) in enumerate(fields.items()):
        for i in range(width):
            channels[terms.id] = 1 << bit
            expected = [0, 0, 0, False]
            expected[at] = field == "finished" or 1 << i
            assert list(pay.channel(terms.id)) == expected
            bit += 1
    assert bit == SPARE_OF_CHANNELS[0]
    for bit in SPARE_OF_CHANNELS:
        channels[terms.id] = 1 << bit
        assert list(pay.channel(terms.id)) == [0, 0, 0, False]
    channels[terms.id] = MAX
    assert list(pay.channel(terms.id)) == [MAX_DEPOSIT, MAX_DEPOSIT, MAX_TIME, True]


def test_every_bit_of_a_streams_word_belongs_to_one_field(pay: Contract, streams: Storage, terms: Terms) -> None:
    bit = 0
    for at, width in enumerate((40, 40, 40, 96)):
        for i in range(width):
            streams[terms.id] = 1 << bit
            assert list(pay.stream(terms.id)) == [(1 << i) * (at == field) for field in range(4)]
            bit += 1
    assert bit == SPARE_OF_STREAMS[0]
    for bit in SPARE_OF_STREAMS:
        streams[terms.id] = 1 << bit
        assert list(pay.stream(terms.id)) == [0, 0, 0, 0]


DEPOSITS = [1, 2, 2**95, MAX_DEPOSIT - 1, MAX_DEPOSIT]


@pytest.mark.parametrize(("deposit", "settled"), [(d, s) for d in DEPOSITS for s in {0, 1, d // 2, d - 1, d}])
def test_every_change_of_a_channel_leaves_the_other_fields(
    evm: Chain, pay: Contract, channels: Storage, terms: Terms, deposit: int, settled: int
) -> None:
    """From each boundary state, asked to close or not, each function leads to the word of the twin."""
    evm.set_balance(pay.address, 2**128)
    evm.set_balance(terms.payer, 1)
    now = evm.now
    for requested_at in (0, now - CLOSE_DELAY):
        before = ChannelState(deposit, settled, requested_at, False)

        def leads_to(after: ChannelState, before: ChannelState = before) -> None:
            assert channels[terms.id] == after.word
            assert ChannelState.from_word(after.word) == after == channel_of(pay, terms)

        cumulatives = {settled + 1, deposit} if settled < deposit else set()
        for cumulative in cumulatives:
            with evm.snapshot():
                channels[terms.id] = before.word
                settle(evm, pay, terms, cumulative, sender=terms.payee)
                leads_to(before.settled_to(cumulative))
        for cumulative in cumulatives | {0}:
            with evm.snapshot():
                channels[terms.id] = before.word
                close(pay, terms, cumulative, voucher(evm, pay, terms, cumulative))
                leads_to(before.closed(cumulative))
        for amount in {1, MAX_DEPOSIT - deposit} - {0} if deposit < MAX_DEPOSIT else set():
            with evm.snapshot():
                channels[terms.id] = before.word
                evm.set_balance(terms.payer, amount)
                top_up(pay, terms, amount, sender=terms.payer, value=amount)
                leads_to(before.topped_up(amount))
        with evm.snapshot():
            channels[terms.id] = before.word
            if requested_at:
                reclaim(pay, terms)
                leads_to(before.closed())
            else:
                request_close(pay, terms)
                leads_to(before.requested(now))


@pytest.mark.parametrize("rate", [1, 2**95, 2**96 - 1])
@pytest.mark.parametrize("seconds", [(0, 1), (0, 2**20), (5, 2**20)])
def test_every_change_of_a_stream_leaves_the_other_fields(
    evm: Chain, pay: Contract, coins: Money, streams: Storage, terms: Terms, rate: int, seconds: tuple[int, int]
) -> None:
    evm.set_balance(pay.address, 2**160)
    elapsed, left = seconds
    now = evm.now + 10
    before = StreamState(now - 10, now - elapsed, now + left, rate)
    evm.at_time(now)
    with evm.snapshot():
        streams[terms.id] = before.word
        if before.withdrawable(now):
            pay.collect(COIN, terms.payee, [terms.source], sender=terms.payee)
            assert streams[terms.id] == StreamState(before.start, now, before.end, rate).word
    for more in (1, MAX_TIME - before.end):
        with evm.snapshot():
            streams[terms.id] = before.word
            longer = StreamState(before.start, before.last, before.end + more, rate)
            cost = longer.deposit - before.deposit
            if cost < 2**128:
                fill_vault(pay, coins, terms.payer, cost) if cost else None
                parties = (terms.payer, terms.payee, COIN, SESSION, OFFER)
                pay.top_up(*parties, more, MAX, sender=terms.payer)
                assert streams[terms.id] == longer.word
                assert state_of(pay, terms) == longer
    with evm.snapshot():
        streams[terms.id] = before.word
        if before.refundable(now) < 2**128:
            pay.cancel(terms.payee, COIN, SESSION, OFFER, COIN, sender=terms.payer)
            assert streams[terms.id] == 0


def test_the_twins_words_round_trip() -> None:
    values = (0, 1, 2**40, MAX_DEPOSIT)
    for deposit, settled, requested_at, finished in product(values, values, (0, 1, MAX_TIME), (False, True)):
        state = ChannelState(deposit, settled, requested_at, finished)
        if settled <= deposit:
            assert ChannelState.from_word(state.word) == state
        else:
            with pytest.raises(ValueError, match="settled"):
                _ = state.word
    with pytest.raises(ValueError, match="40 bits"):
        _ = ChannelState(1, 0, MAX_TIME + 1, False).word
