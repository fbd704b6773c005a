"""The keeper on a real chain: what it does, what it leaves, and that its figures are the chain's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from agents.keeper._keeper import Keeper
from agents.keeper._planner import Policy
from agents.keeper._sender import MAX_IN_FLIGHT
from penstock.channels import CLOSE_DELAY
from penstock.types import NATIVE, StandingOrder
from penstock.wire.keeper import StandingOrderLine, VoucherLine, encode_line, sign_standing_order
from tests.agents.keeper.rig import MILLI, RATE, Rig, priced
from tests.harness import PATIENCE


async def once(keeper: Keeper) -> None:
    async with asyncio.timeout(2 * PATIENCE):  # its own clock stands still
        await keeper.once(asyncio.Event())


# --- streams -------------------------------------------------------------------------------------


async def test_collects_for_payees_that_agreed_and_for_no_others(rig: Rig) -> None:
    agreed, other = await rig.payee(), await rig.payee(opted_in=False)
    first, second = await rig.stream(agreed.address), await rig.stream(agreed.address)
    foreign = await rig.stream(other.address)
    rig.node.advance(100)
    keeper = await rig.keeper()

    await once(keeper)

    assert rig.seen.kinds() == ["collect"]
    assert set(rig.seen.sent[0].job.streams) == {first.id, second.id}
    (left,) = await rig.chain.streams([foreign.id])
    assert left.last == left.start
    totals = keeper.totals()
    assert totals.earned[NATIVE] == totals.moved["collect", NATIVE] // 1_000 > 0
    assert totals.settled == 2
    await rig.assert_figures(keeper)


async def test_stops_when_a_payee_takes_its_agreement_back(rig: Rig) -> None:
    payee = await rig.payee()
    await rig.stream(payee.address)
    rig.node.advance(100)
    keeper = await rig.keeper()
    await once(keeper)
    await rig.chain.set_keeper_reward(payee, False)
    rig.node.advance(100)

    await once(keeper)

    assert rig.seen.kinds() == ["collect"]


async def test_waits_until_it_pays(rig: Rig) -> None:
    payee = await rig.payee()
    key = await rig.stream(payee.address, rate=MILLI * 10**6)
    rig.node.advance(20)
    keeper = await rig.keeper()
    await once(keeper)
    assert not rig.seen.sent

    rig.node.advance(200)
    await once(keeper)

    (state,) = await rig.chain.streams([key.id])
    assert state.last > state.start
    totals = keeper.totals()
    assert totals.earned[NATIVE] > totals.spent * 3 // 2
    await rig.assert_figures(keeper)


async def test_what_the_trial_finds_too_dear_is_left_for_a_while(rig: Rig) -> None:
    """The planner's gas is the cheap side of what can happen: the first settlement of a payee costs more."""
    payee = await rig.payee()
    await rig.stream(payee.address, rate=MILLI * 10**6)
    rig.node.advance(83)  # pays for 54,000 gas and not for what it takes
    keeper = await rig.keeper()

    await once(keeper)

    ((action, why),) = rig.seen.alone
    assert not rig.seen.sent
    assert f"brings {action.gain} wei" in why
    rig.node.mine()
    await once(keeper)
    assert len(rig.seen.alone) == 1
    rig.clock.ahead += 31
    rig.node.advance(200)
    await once(keeper)
    assert rig.seen.kinds() == ["collect"]


async def test_an_ended_stream_is_collected_and_its_slot_freed(rig: Rig) -> None:
    payee = await rig.payee()
    key = await rig.stream(payee.address, duration=50)
    rig.node.advance(100)
    keeper = await rig.keeper()

    await once(keeper)

    assert await rig.chain.streams([key.id]) == [None]
    assert keeper.totals().moved["collect", NATIVE] == 50 * 10 * MILLI
    await rig.assert_figures(keeper)
    rig.node.advance(10)
    await once(keeper)
    assert len(rig.seen.sent) == 1


async def test_200_streams_are_one_batch_and_the_rest_another(rig: Rig) -> None:
    payee, payer = await rig.payee(), await rig.payer()
    # From the vault, so that the node mines them all in a few blocks.
    await rig.chain.deposit(payer, NATIVE, 300 * 10**18)
    keys = [rig.key(payer, payee.address) for _ in range(203)]
    for at in range(0, len(keys), 20):
        part = keys[at : at + 20]
        await asyncio.gather(
            *(rig.chain.open(payer, key, rate=RATE, duration=100, value=0, from_vault=10**18) for key in part)
        )
    rig.node.advance(60)
    keeper = await rig.keeper()

    await once(keeper)

    assert sorted(len(one.job.streams) for one in rig.seen.sent) == [3, 200]
    assert all(one.job.succeeded for one in rig.seen.landed)
    assert keeper.totals().settled == 203
    await rig.assert_figures(keeper)


async def test_own_streams_are_collected_without_anyones_agreement(rig: Rig) -> None:
    key = await rig.stream(rig.account.address, rate=10**6, duration=10_000)
    keeper = await rig.keeper()
    rig.node.advance(3_000)
    await once(keeper)
    assert not rig.seen.sent

    rig.node.advance(700)
    await once(keeper)

    (state,) = await rig.chain.streams([key.id])
    totals = keeper.totals()
    assert totals.moved == {("collect", NATIVE): state.paid}
    assert await rig.chain.vault_balance(NATIVE, rig.account.address) == state.paid
    assert not totals.earned


# --- tokens --------------------------------------------------------------------------------------


async def test_a_token_is_collected_where_its_price_says_so(rig: Rig) -> None:
    payee = await rig.payee()
    await rig.stream(payee.address, token=rig.dollar, rate=10**6 * 10**6)  # a dollar a second
    rig.node.advance(500)  # a reward of half a dollar
    keeper = await rig.keeper()
    await once(keeper)
    assert not rig.seen.sent

    # At 0.0016 coins a dollar it is worth 0.0008 coins; the gas costs a tenth of that.
    keeper = await rig.keeper(planning=priced(rig.dollar, "1600000000"))
    await once(keeper)

    totals = keeper.totals()
    assert totals.earned[rig.dollar] >= 500_000
    await rig.assert_figures(keeper)


async def test_a_token_without_a_price_is_collected_where_the_operator_wants_it(rig: Rig) -> None:
    payee = await rig.payee()
    await rig.stream(payee.address, token=rig.dollar, rate=10**6 * 10**6, duration=100)
    rig.node.advance(200)
    keeper = await rig.keeper(planning=Policy(collect_unpriced=True))

    await once(keeper)

    assert keeper.totals().earned == {rig.dollar: 100_000}
    await rig.assert_figures(keeper)


# --- vouchers ------------------------------------------------------------------------------------


def write(folder: Path, name: str, *lines: bytes) -> None:
    with (folder / name).open("ab") as file:
        file.writelines(lines)


async def test_settles_the_highest_voucher_of_each_channel_in_one_batch(rig: Rig, tmp_path: Path) -> None:
    payee = await rig.payee()
    first, second = await rig.channel(payee.address), await rig.channel(payee.address)
    vouchers = [rig.voucher(*first, 10**17), rig.voucher(*first, 6 * 10**17), rig.voucher(*first, 3 * 10**17)]
    vouchers += [rig.voucher(*second, 5 * 10**17), rig.voucher(*second, 2 * 10**18)]  # the last: above the deposit
    write(tmp_path, "gateway.jsonl", *(encode_line(VoucherLine.of(one)) for one in vouchers))
    keeper = await rig.keeper(vouchers=tmp_path)

    await once(keeper)

    assert rig.seen.kinds() == ["settle"]
    one, other = await rig.chain.channels([first[0].id, second[0].id])
    assert (one.settled, other.settled) == (6 * 10**17, 5 * 10**17)
    assert keeper.totals().earned == {NATIVE: 11 * 10**14}
    assert keeper.totals().moved == {("settle", NATIVE): 11 * 10**17}
    await rig.assert_figures(keeper)


async def test_garbage_among_the_vouchers_is_reported_and_passed_over(rig: Rig, tmp_path: Path) -> None:
    payee = await rig.payee()
    key, session = await rig.channel(payee.address)
    good = encode_line(VoucherLine.of(rig.voucher(key, session, 8 * 10**17)))
    forged = encode_line(VoucherLine.of(replace(rig.voucher(key, session, 9 * 10**17), cumulative=10**18)))
    half = encode_line(VoucherLine.of(rig.voucher(key, session, 10**18)))[:-30]
    write(tmp_path, "feed.jsonl", b"\xff\xfe\x00garbage\n", b"\n", b"[]\n", b"x" * 20_000 + b"\n", forged, good, half)
    (tmp_path / "notes.txt").write_bytes(b"not a feed\n")
    keeper = await rig.keeper(vouchers=tmp_path)

    await once(keeper)

    assert [where for where, _ in rig.seen.bad] == ["feed.jsonl:1", "feed.jsonl:3", "feed.jsonl:4", "feed.jsonl:5"]
    assert "bytes long" in rig.seen.bad[2][1]
    assert "signed by" in rig.seen.bad[3][1]
    (state,) = await rig.chain.channels([key.id])
    assert state.settled == 8 * 10**17


async def test_vouchers_survive_their_file_and_the_process(rig: Rig, tmp_path: Path) -> None:
    payee = await rig.payee()
    key, session = await rig.channel(payee.address)
    write(tmp_path, "a.jsonl", encode_line(VoucherLine.of(rig.voucher(key, session, 2 * 10**14))))
    keeper = await rig.keeper(vouchers=tmp_path)
    await once(keeper)
    assert not rig.seen.sent  # too little

    (tmp_path / "a.jsonl").unlink()
    keeper = await rig.keeper(vouchers=tmp_path, planning=Policy(margin=Policy().margin / 1_000))
    await once(keeper)

    (state,) = await rig.chain.channels([key.id])
    assert state.settled == 2 * 10**14


# --- standing orders -----------------------------------------------------------------------------


async def test_extends_a_stream_within_what_its_payer_signed(rig: Rig, tmp_path: Path) -> None:
    payee, payer = await rig.payee(opted_in=False), await rig.payer()
    key = await rig.stream(payee.address, payer=payer, rate=10**6, duration=50)
    await rig.chain.deposit(payer, NATIVE, 10**9)
    (state,) = await rig.chain.streams([key.id])
    until = state.start + 400
    signed = sign_standing_order(rig.chain.stream_pay_domain, payer, key, state.start, StandingOrder(200, until))
    write(tmp_path, "orders.jsonl", encode_line(StandingOrderLine.of(signed)))
    keeper = await rig.keeper(orders=tmp_path)

    await once(keeper)
    (extended,) = await rig.chain.streams([key.id])
    assert state.end < extended.end <= rig.node.now + 200

    ends = {extended.end}
    for _ in range(12):
        rig.node.advance(40)
        await once(keeper)
        (found,) = await rig.chain.streams([key.id])
        if found is not None:
            ends.add(found.end)
            assert found.end <= until
    assert max(ends) == until
    assert rig.seen.kinds() == ["extend"] * (len(ends))
    assert keeper.totals().failed == 0


async def test_orders_that_cannot_be_followed_are_left_and_tried_again_later(rig: Rig, tmp_path: Path) -> None:
    payee, payer = await rig.payee(opted_in=False), await rig.payer()
    key = await rig.stream(payee.address, payer=payer, rate=10**6, duration=50)
    (state,) = await rig.chain.streams([key.id])
    domain = rig.chain.stream_pay_domain
    good = sign_standing_order(domain, payer, key, state.start, StandingOrder(200, state.end + 1_000))
    forged = sign_standing_order(domain, payee, key, state.start, StandingOrder(300, state.end + 1_000))
    hasty = sign_standing_order(domain, payer, key, state.start, StandingOrder(10, state.end + 1_000))
    write(tmp_path, "orders.jsonl", *(encode_line(StandingOrderLine.of(one)) for one in (good, forged, hasty)))
    keeper = await rig.keeper(orders=tmp_path)

    await once(keeper)  # the forged one goes further, and is tried first
    ((_, why),) = rig.seen.bad
    assert "too often" in why
    assert "signature" in rig.seen.alone[0][1]
    rig.node.mine()
    await once(keeper)  # the payer's vault is empty
    assert len(rig.seen.alone) == 2
    assert not rig.seen.sent

    await rig.chain.deposit(payer, NATIVE, 10**9)
    rig.clock.ahead += 40
    rig.node.mine()
    await once(keeper)
    rig.node.mine()
    await once(keeper)
    (extended,) = await rig.chain.streams([key.id])
    assert extended.end > state.end


# --- the account's own channels ------------------------------------------------------------------


async def test_reclaims_its_own_channels_after_the_delay(rig: Rig) -> None:
    payee = await rig.payee(opted_in=False)
    key, _ = await rig.channel(payee.address, payer=rig.account, deposit=10**17)
    stranger = await rig.payer()
    other, _ = await rig.channel(payee.address, payer=stranger, deposit=10**17)
    await rig.chain.request_close(rig.account, key)
    await rig.chain.request_close(stranger, other)
    keeper = await rig.keeper()
    await once(keeper)
    assert not rig.seen.sent

    rig.node.advance(CLOSE_DELAY)
    await once(keeper)

    assert rig.seen.kinds() == ["reclaim"]
    assert await rig.chain.vault_balance(NATIVE, rig.account.address) == 10**17
    assert keeper.totals().moved == {("reclaim", NATIVE): 10**17}
    mine, theirs = await rig.chain.channels([key.id, other.id])
    assert (mine.finished, theirs.finished) == (True, False)


# --- looking only --------------------------------------------------------------------------------


async def test_a_dry_run_sends_and_writes_nothing(rig: Rig) -> None:
    payee = await rig.payee()
    await rig.stream(payee.address)
    rig.node.advance(100)
    height, balance = rig.node.height, await rig.chain.native_balance(rig.account.address)
    keeper = await rig.keeper(copy=True)

    (outlook,) = await keeper.look()

    assert outlook.profit is not None
    assert outlook.profit > 0
    assert outlook.problem == ""
    assert (rig.node.height, await rig.nonce()) == (height, 0)
    assert await rig.chain.native_balance(rig.account.address) == balance
    assert not rig.path.exists()


async def test_a_dry_run_sees_what_is_under_way_beside_a_running_keeper(rig: Rig) -> None:
    payee = await rig.payee()
    await rig.stream(payee.address)
    rig.node.advance(100)
    keeper = await rig.keeper()
    rig.node.rpc("evm_setAutomine", False)
    await keeper.once(asyncio.Event(), patience=0)
    assert keeper.pending == 1
    ledger, rig._ledger = rig.ledger, None  # stays open, as that of another process

    looking = await rig.keeper(copy=True)

    assert await looking.look() == []
    ledger.close()


# --- how much at once ----------------------------------------------------------------------------


async def test_more_than_may_be_under_way_at_once_is_done_in_turn(rig: Rig) -> None:
    payees = [await rig.payee() for _ in range(MAX_IN_FLIGHT + 2)]
    for payee in payees:
        await rig.stream(payee.address)
    rig.node.advance(100)
    keeper = await rig.keeper()
    with rig.node.holding():
        await keeper.once(asyncio.Event(), patience=0)
        assert keeper.pending == MAX_IN_FLIGHT

    await once(keeper)
    rig.node.mine()
    await once(keeper)

    assert len(rig.seen.sent) == len(payees)
    assert sorted(one.job.nonce for one in rig.seen.sent) == list(range(len(payees)))
    await rig.assert_figures(keeper)


async def test_a_keeper_without_coins_says_so_and_waits(rig: Rig) -> None:
    payee = await rig.payee()
    await rig.stream(payee.address)
    rig.node.advance(100)
    rig.node.set_balance(rig.account.address, 0)
    keeper = await rig.keeper()

    await once(keeper)

    ((_, why),) = rig.seen.alone
    assert "has 0 BNB" in why
    assert keeper.pending == 0


async def test_gas_that_is_too_dear_stops_everything(rig: Rig) -> None:
    await rig.stream(rig.account.address, rate=10**6, duration=10)
    rig.node.advance(100)
    keeper = await rig.keeper()
    policy = keeper._policy.sending
    keeper._policy = replace(keeper._policy, sending=replace(policy, max_gas_price=10**9 - 1))

    await once(keeper)

    assert "gas costs" in rig.seen.alone[0][1]
    assert not rig.seen.sent
