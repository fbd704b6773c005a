"""Slashing, staking and registry against their twin, among people who sign and say anything.

An honest provider serves whoever asks. A liar, with a consumer and a reporter of its own, signs whatever it likes.
Strangers report what they find or make up, open challenges, and copy one another. After each step contract and twin
agree to the unit; at the end everybody leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from eth_utils import keccak
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from penstock.types import Address, hex32
from penstock.wire.receipts import (
    NOTHING,
    Accept,
    Receipt,
    SignedAccept,
    SignedReceipt,
    output_hash,
    pack_ids,
    request_hash,
)
from tests.contracts.court import (
    ANSWER,
    BOND,
    BURNED,
    COVER,
    KINDS,
    OVERSOLD,
    WINDOW,
    Court,
    Parties,
    Proof,
    commitment,
    deploy_court,
)
from tests.contracts.harness import Actor, flip_signature
from tests.contracts.market import ZERO, OfferTerms
from tests.contracts.stateful.judge import HonestProvider, Judge, Refused, Work
from tests.fastchain import Chain, Contract, Reverted
from tests.profiles import COUNTS

HONEST, LIAR = Actor("honest provider"), Actor("liar")
PUPPET, ACCOMPLICE = Actor("puppet consumer"), Actor("accomplice")
COALITION = (LIAR, PUPPET, ACCOMPLICE)
CONSUMERS = (Actor("consumer 1"), Actor("consumer 2"), PUPPET)
REPORTERS = (Actor("watchdog"), Actor("thief"), ACCOMPLICE, LIAR)
EVERYBODY = tuple(dict.fromkeys((HONEST, *COALITION, *CONSUMERS, *REPORTERS)))
KEYS = {HONEST: ("honest key 1", "honest key 2"), LIAR: ("liar's key 1", "liar's key 2")}
STAKE = 25 * COVER
WEALTH = 10**20
ANSWERS = ((), (1,), (7, 8, 9), tuple(range(40)))
"""Token ids of answers."""
MOST_PAIRS = 150
"""Of pairs of an honest provider's receipts that are held against it at the end of a run."""


@dataclass(frozen=True)
class World:
    court: Court
    offers: tuple[OfferTerms, ...]


@pytest.fixture(scope="module", params=["coins", "tokens"])
def world(request: pytest.FixtureRequest, evm_of_module: Chain, deploy: Callable[..., Contract]) -> World:
    """Both providers are registered and staked, with two offers each of the same terms: one by token and second, one
    of a single slot in another token."""
    court = deploy_court(evm_of_module, deploy, deploy("PlainToken") if request.param == "tokens" else None)
    offers = (court.terms.but(slots=2, rate=3_333_333_333), court.terms.but(slots=1, token=Actor("other token")))
    for provider in (HONEST, LIAR):
        court.market.register(provider, signer=Actor(KEYS[provider][0]))
        court.market.stake(provider, STAKE)
        for terms in offers:
            court.market.create(provider, terms)
    for account in EVERYBODY:
        court.evm.set_balance(account, WEALTH)
    return World(court, offers)


amounts = st.one_of(st.integers(0, 300), st.sampled_from([COVER // 7, COVER, 2**128 - 1]))


class SlashingMachine(RuleBasedStateMachine):
    world: World  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.court = self.world.court
        self.evm = self.court.evm
        self.snapshot = self.evm.snapshot()
        self.snapshot.__enter__()
        court, offers = self.court, self.world.offers
        named = {hex32(terms.id(p)): (p, terms) for p in (HONEST, LIAR) for terms in offers}
        self.judge = Judge(court.domain, court.asset, {id: (str(p), terms) for id, (p, terms) in named.items()})
        for provider in (HONEST, LIAR):
            since = court.registry.signer_period(provider, 0)[1]
            self.judge.keys[provider] = [(since, Actor(KEYS[provider][0]))]
            self.judge.stakes[provider].bonded = STAKE
        self.evm.sleep(7_200)
        self.first = self.evm.now
        self.honest = HonestProvider(str(HONEST), court.domain, KEYS[HONEST][0], lambda: self.evm.now)
        self.lies: list[SignedReceipt] = []
        self.liar_accepts: list[tuple[SignedAccept, Parties]] = []
        self.cases: list[Proof] = []
        """Whole proofs against the liar."""
        self.salts = 0
        self.won = 0
        """Bonds that strangers lost to the liar."""
        self.withdrawn = {HONEST: 0, LIAR: 0}
        self.slashed = 0
        self.wealth = self.wealth_of(COALITION)
        self.credited: dict[tuple[str, str], int] = {}

    def teardown(self) -> None:
        try:
            self.honest_cannot_be_convicted()
            self.everybody_leaves()
        finally:
            self.snapshot.__exit__(None, None, None)

    # --- books ---

    def wealth_of(self, accounts: Sequence[str]) -> int:
        """In the stake's asset, and bonds: what they hold, what is owed to them, what they have staked."""
        court = self.court
        total = 0
        for account in accounts:
            tokens = {court.asset, ZERO}
            total += sum(court.credit(account, token) for token in tokens) + self.evm.balance(account)
            if court.market.asset is not None:
                total += court.market.held(account)
        return total + sum(court.stake(a) for a in accounts if a in (HONEST, LIAR))

    def compare(self) -> None:
        court, judge = self.court, self.judge
        views: list[tuple[Any, ...]] = []
        expected: list[Any] = []
        for provider in (HONEST, LIAR):
            stake = judge.stakes[provider]
            views += [(court.staking, name, provider) for name in ("stake_of", "slashable", "frozen", "unbonding")]
            expected += [stake.bonded, stake.total, stake.frozen, tuple(stake.queue)]
        accounts = (*EVERYBODY, BURNED)
        is_coin = court.asset == ZERO
        for account in accounts:
            views.append((court.slashing, "credit_of", court.asset, account))
            expected.append(judge.credits[account] + (judge.bonds[account] if is_coin else 0))
            views.append((court.slashing, "credit_of", ZERO, account))
            expected.append(judge.bonds[account] + (judge.credits[account] if is_coin else 0))
        for (provider, session, start), amount in list(judge.compensated.items())[-5:]:
            views.append((court.slashing, "compensated", provider, bytes.fromhex(session[2:]), start))
            expected.append(amount)
        assert self.evm.read(*views) == expected
        stakes = sum(stake.total for stake in judge.stakes.values())
        bonds = sum(BOND for _, _, is_open in judge.challenges.values() if is_open) + sum(judge.bonds.values())
        credits = sum(judge.credits.values())
        assert court.market.held(court.staking.address) == stakes
        if is_coin:
            assert self.evm.balance(court.slashing.address) == bonds + credits
        else:
            assert self.evm.balance(court.slashing.address) == bonds
            assert court.market.held(court.slashing.address) == credits
        # Nothing but verdicts and its own owner moves a stake, and no verdict is against the honest one.
        assert judge.stakes[HONEST].total + self.withdrawn[HONEST] == STAKE, "an honest provider was slashed"
        assert judge.stakes[LIAR].total + self.withdrawn[LIAR] + self.slashed == STAKE
        assert 0 <= self.slashed <= STAKE, "more was slashed than staked"

    def check_coalition(self) -> None:
        """Nobody is richer for having been convicted, whoever it is that reports and is compensated."""
        assert self.wealth_of(COALITION) <= self.wealth + self.won, "a coalition gained"

    def attempt(self, twin: Callable[[], Any], real: Callable[[], Any]) -> Any:
        """Do it on both sides; None where both refuse for the same reason."""
        COUNTS["calls to Slashing"] += 1
        reason, said = None, None
        try:
            said = twin()
        except Refused as refused:
            reason = str(refused)
        COUNTS["calls to Slashing that must revert, and did"] += reason is not None
        note(f"-> {reason or said}")
        found, mined = None, None
        try:
            mined = real()
        except Reverted as reverted:
            found = reverted.reason
        assert found == reason, f"the contract says {found!r}, the twin {reason!r}"
        self.compare()
        return (said, mined) if reason is None else None

    def salt(self) -> bytes:
        self.salts += 1
        return keccak(self.salts.to_bytes(8, "big"))

    # --- what is there to choose from ---

    def parties(self, choice: int, token: str | None = None) -> Parties:
        payer = CONSUMERS[choice % len(CONSUMERS)]
        key = Actor(f"session key {choice % 4}")
        return Parties(payer, Actor("payee"), self.court.asset if token is None else token, key)

    def starts(self, choice: int) -> int:
        return (0, self.first - 5_000, self.first - 100)[choice % 3]

    @property
    def pile(self) -> list[SignedReceipt]:
        return [*self.honest.receipts, *self.lies]

    def known_parties(self, receipt: Receipt) -> Parties:
        """The parties of its session, or some others."""
        for choice in range(12):
            for token in (self.court.asset, self.world.offers[1].token):
                parties = self.parties(choice, token)
                if parties.id(bytes.fromhex(receipt.offer_id[2:])) == receipt.session_id:
                    return parties
        return self.parties(0)

    # --- the honest provider's day ---

    @rule(
        asked=st.lists(
            st.tuples(st.integers(0, 11), st.integers(0, 1), st.integers(0, 2), st.integers(0, 5_000)),
            min_size=2,
            max_size=6,
        )
    )
    def consumers_ask_the_honest_provider(self, asked: list[tuple[int, int, int, int]]) -> None:
        """More than it has slots, and several things at once in one session."""
        for choice, offer, start, prompt in asked:
            terms = self.world.offers[offer]
            body = b"%d" % len(self.honest.accepts)
            self.honest.take(self.parties(choice, terms.token), terms, self.starts(start), body, prompt)

    @rule(
        finished=st.lists(
            st.tuples(st.integers(0, 9), st.sampled_from(ANSWERS), st.integers(0, 5)), min_size=1, max_size=4
        )
    )
    def the_honest_provider_answers(self, finished: list[tuple[int, tuple[int, ...], int]]) -> None:
        """In another order than it was asked."""
        for number, answer, tells in finished:
            if self.honest.working:
                self.honest.finish(number, answer, tells_ids=tells > 0)

    @rule()
    def the_honest_provider_rotates_its_key(self) -> None:
        """Both keys sign for a while; each only in its time."""
        self.rotate(HONEST)
        self.honest.signer = next(role for role in KEYS[HONEST] if Actor(role) == self.judge.keys[HONEST][-1][1])
        # What is signed in this second by either key counts; the clock of receipts goes on in the next.
        self.evm.sleep(1)

    def rotate(self, provider: Actor) -> None:
        keys = self.judge.keys[provider]
        if keys[-1][0] == self.evm.now:
            return
        key = Actor(next(role for role in KEYS[provider] if Actor(role) != keys[-1][1]))
        self.court.registry.set_signer(provider, key, sender=provider)
        keys.append((self.evm.now, key))

    # --- the liar's ---

    @rule(
        function=st.sampled_from([*KINDS]),
        choice=st.integers(0, 11),
        start=st.integers(0, 2),
        seq=st.sampled_from([0, 0, 0, 1, 15, 16, 40]),
        total=st.one_of(st.none(), amounts),
        reporter=st.sampled_from([None, *REPORTERS]),
    )
    def the_liar_contradicts_itself(
        self, function: str, choice: int, start: int, seq: int, total: int | None, reporter: str | None
    ) -> None:
        """And may be reported at once."""
        firsts = ("prove_first_total", "prove_first_link", "prove_running_total", "prove_broken_chain")
        changes = {} if function in firsts else {"seq": seq}
        signer = Actor(next(r for r in KEYS[LIAR] if Actor(r) == self.judge.keys[LIAR][-1][1]))
        begun = max(since for since, _ in self.judge.keys[LIAR])
        case = self.court.faulty(
            function,
            str(LIAR),
            signer=signer,
            parties=self.parties(choice),
            terms=self.world.offers[0],
            start=self.starts(start),
            end=max(begun, self.evm.now - 60),
            **changes,
        )
        if total is not None and len(case.messages) == 1 and function != "prove_first_total":
            case = replace(case, messages=(self.court.sign(replace(case.accused, total=total), signer),))
        self.cases.append(case)
        self.lies += case.messages
        if reporter:
            self.submit(case, reporter, "well")

    @rule(data=st.data(), choice=st.integers(0, 11))
    def the_liar_signs_anything(self, data: st.DataObject, choice: int) -> None:
        """A receipt of its own with some fields out of the air, or a copy of another's in its own name."""
        signer = Actor(data.draw(st.sampled_from(KEYS[LIAR])))
        terms = self.world.offers[data.draw(st.integers(0, 1))]
        base = self.court.receipt(str(LIAR), parties=self.parties(choice, terms.token), terms=terms)
        if self.pile and data.draw(st.booleans()):
            base = replace(data.draw(st.sampled_from(self.pile)).receipt, provider=Address(str(LIAR)))
        hashes = [NOTHING, request_hash(b"x"), *(m.receipt.hash for m in self.pile[-5:])]
        fields: dict[str, st.SearchStrategy[Any]] = {
            "seq": st.sampled_from([0, 1, 2, 16, 2**32 - 1]),
            "start": st.sampled_from([0, self.first - 5_000, 2**40 - 1]),
            "output_hash": st.sampled_from([NOTHING, *map(output_hash, ANSWERS)]),
            "completion_tokens": st.sampled_from([0, 1, 3, 40, 2**32 - 1]),
            "prompt_tokens": st.sampled_from([0, 1, 2**32 - 1]),
            "accepted_at": st.sampled_from([0, (self.evm.now - 30) * 1000, 2**64 - 1]),
            "first_token_at": st.sampled_from([0, self.evm.now * 1000, 2**64 - 1]),
            "finished_at": st.sampled_from([0, self.evm.now * 1000, (self.evm.now + 5) * 1000, 2**64 - 1]),
            "amount": amounts,
            "total": amounts,
            "previous": st.sampled_from(hashes),
            "offer_id": st.sampled_from([*self.judge.offers, NOTHING]),
        }
        chosen = data.draw(st.lists(st.sampled_from([*fields]), max_size=3, unique=True))
        changes = {name: data.draw(fields[name]) for name in chosen}
        self.lies.append(self.court.sign(replace(base, **changes), signer))

    @rule()
    def the_liar_rotates_its_key(self) -> None:
        self.rotate(LIAR)

    @rule(choice=st.integers(0, 11), age=st.sampled_from([0, 3_600, 4_000, 86_399, 90_000]))
    def the_liar_accepts_a_request(self, choice: int, age: int) -> None:
        self.the_liar_takes(choice, age)

    def the_liar_takes(self, choice: int, age: int) -> None:
        parties = self.parties(choice)
        receipt = self.court.receipt(str(LIAR), parties=parties, terms=self.world.offers[0])
        body = request_hash(b"%d" % len(self.liar_accepts))
        accept = self.court.accept(receipt, request_hash=body, accepted_at=(self.evm.now - age) * 1000)
        signer = Actor(next(r for r in KEYS[LIAR] if Actor(r) == self.judge.keys[LIAR][-1][1]))
        self.liar_accepts.append((self.court.sign_accept(accept, signer), parties))

    # --- proofs ---

    def submit(self, proof: Proof, reporter: str, commits: str) -> None:
        COUNTS[f"proofs of kind {proof.kind} tried"] += 1
        salt = self.salt()
        made = commitment(reporter, salt, proof.evidence(self.court.domain))
        if commits != "not at all":
            committer = reporter if commits != "copied" else Actor("thief")
            made = commitment(committer, salt, proof.evidence(self.court.domain))
            mined = self.court.slashing.commit(made, sender=committer)
            self.judge.commitments[made] = mined.block
            if commits != "too late":
                self.court.next_block()
        block = int(self.evm.rpc("eth_blockNumber"), 16)
        note(f"{proof.function} by {reporter}, committed {commits}: {[m.receipt for m in proof.messages]}")
        before = self.judge.stakes[LIAR].total

        def real() -> Any:
            return getattr(self.court.slashing, proof.function)(*proof.arguments(salt), sender=reporter)

        def twin() -> Any:
            said = self.judge.prove(proof, reporter, salt, self.evm.now, block)
            self.slashed += before - self.judge.stakes[LIAR].total
            return said

        done = self.attempt(twin, real)
        if done is None:
            return
        COUNTS[f"proofs of kind {proof.kind} that convicted"] += 1
        parts, mined = done
        log = mined.log("FaultProven")
        taken = before - self.judge.stakes[LIAR].total
        assert (log["to_reporter"], log["to_victim"], log["burned"]) == parts
        assert sum(parts) == log["slashed"] == taken <= COVER
        assert 2 * log["burned"] >= taken
        self.check_coalition()

    @rule(
        number=st.integers(0, 30),
        reporter=st.sampled_from(REPORTERS),
        commits=st.sampled_from(["well", "well", "well", "well", "too late", "not at all", "copied"]),
        mangles=st.sampled_from(["", "", "", "", "", "signature", "receipt", "order"]),
    )
    def somebody_reports_the_liar(self, number: int, reporter: str, commits: str, mangles: str) -> None:
        if not self.cases:
            return
        case = self.cases[number % len(self.cases)]
        if mangles == "signature":
            case = case.signed(flip_signature)
        elif mangles == "receipt":
            first = replace(case.messages[0].receipt, prompt_tokens=3)
            case = replace(case, messages=(replace(case.messages[0], receipt=first), *case.messages[1:]))
        elif mangles == "order":
            case = replace(case, messages=case.messages[::-1])
        self.submit(case, reporter, commits)

    @rule(data=st.data(), function=st.sampled_from([*KINDS]), reporter=st.sampled_from(REPORTERS))
    def somebody_reports_anything(self, data: st.DataObject, function: str, reporter: str) -> None:
        """Any messages that were ever signed, by whomever, in any combination."""
        if not self.pile:
            return
        first = data.draw(st.sampled_from(self.pile))
        kin = [m for m in self.pile if m.receipt.session == first.receipt.session] or self.pile
        other = data.draw(st.sampled_from(kin if data.draw(st.booleans()) else self.pile))
        if data.draw(st.integers(0, 9)) == 0:
            other = replace(other, receipt=replace(other.receipt, amount=1))  # forged
        self.submit(self.accusation(function, first, other, data), reporter, "well")

    def accusation(self, function: str, first: SignedReceipt, other: SignedReceipt, data: st.DataObject) -> Proof:
        kind, session = KINDS[function], self.known_parties(other.receipt).struct
        if kind == OVERSOLD:
            pool = sorted({m.receipt.session_id: m for m in self.pile}.items())
            count = data.draw(st.integers(2, 3))
            chosen = data.draw(st.lists(st.sampled_from(range(len(pool))), min_size=1, max_size=count, unique=True))
            return Proof(kind, function, tuple(pool[at][1] for at in sorted(chosen)))
        if function in ("prove_equivocation", "prove_running_total", "prove_broken_chain"):
            return Proof(kind, function, (first, other), (session,))
        if function == "prove_padding":
            ids = pack_ids(data.draw(st.sampled_from(ANSWERS)))
            return Proof(kind, function, (other,), (ids, session))
        if function == "prove_wrong_offer":
            offer = data.draw(st.sampled_from([other.receipt.offer_id, *self.judge.offers]))
            return Proof(kind, function, (other,), (session, bytes.fromhex(offer[2:])))
        return Proof(kind, function, (other,), (session,))

    # --- challenges ---

    @rule(
        number=st.integers(0, 30),
        against=st.sampled_from([HONEST, HONEST, LIAR]),
        challenger=st.sampled_from(REPORTERS),
        waits=st.sampled_from([0, 3_600, 3_600, 7_200]),
    )
    def somebody_challenges(self, number: int, against: str, challenger: str, waits: int) -> None:
        if against == HONEST:
            terms = self.world.offers[0]
            self.honest.take(self.parties(number), terms, self.starts(number), b"asked %d" % self.salts, 100)
            self.salts += 1
        else:
            self.the_liar_takes(number, 3_600)
        accepts = [*self.honest.accepts.values()] if against == HONEST else self.liar_accepts
        if not accepts:
            return
        self.pass_time(waits)
        signed, parties = accepts[number % len(accepts)]
        note(f"a challenge by {challenger} of {signed.accept}")

        def real() -> Any:
            arguments = (signed.accept.as_tuple(), signed.signature, parties.struct)
            return self.court.slashing.open_challenge(*arguments, sender=challenger, value=BOND)

        self.attempt(lambda: self.judge.open_challenge(signed, parties, challenger, self.evm.now), real)
        self.check_coalition()

    def open_challenges(self, provider: str) -> list[tuple[Accept, Parties, str]]:
        accepts = [*self.honest.accepts.values()] if provider == HONEST else self.liar_accepts
        found = []
        for signed, parties in accepts:
            challenge = self.judge.challenges.get(signed.accept.digest(self.court.domain))
            if challenge and challenge[2]:
                found.append((signed.accept, parties, str(challenge[0])))
        return found

    def honest_answers(self) -> None:
        """It watches the chain, and answers every challenge within its window: the work under way ends then."""
        for accept, _, challenger in self.open_challenges(HONEST):
            for number, work in enumerate(self.honest.working):
                if work.accept.accept == accept:
                    self.honest.finish(number, (1, 2))
                    break
            # Its clock may be some ms ahead of this second.
            self.evm.at_time(max(self.evm.now, self.honest.clock // 1000))
            signed, ids = self.honest.answers[accept.hash]

            def real(signed: SignedReceipt = signed, ids: bytes = ids) -> Any:
                arguments = (signed.receipt.as_tuple(), signed.signature, ids)
                return self.court.slashing.answer_challenge(*arguments, sender=HONEST)

            def twin(signed: SignedReceipt = signed, ids: bytes = ids) -> Any:
                return self.judge.answer(signed, ids, BOND, self.evm.now)

            assert self.attempt(twin, real), f"the honest provider cannot answer {challenger}"
            COUNTS["challenges that the honest provider answered"] += 1

    @rule(number=st.integers(0, 9), right=st.booleans(), ids=st.sampled_from(ANSWERS))
    def the_liar_answers(self, number: int, right: bool, ids: tuple[int, ...]) -> None:
        challenges = self.open_challenges(LIAR)
        if not challenges:
            return
        accept, parties, challenger = challenges[number % len(challenges)]
        signer = Actor(next(r for r in KEYS[LIAR] if Actor(r) == self.judge.keys[LIAR][-1][1]))
        receipt = self.court.receipt(
            str(LIAR),
            parties=parties,
            terms=self.world.offers[0],
            request_hash=accept.request_hash,
            accepted_at=accept.accepted_at if right else accept.accepted_at + 1,
            output_hash=output_hash(ids),
            completion_tokens=len(ids),
            end=self.evm.now,
        )
        signed = self.court.sign(receipt, signer)
        self.lies.append(signed)

        def real() -> Any:
            return self.court.answer(signed, ids, sender=LIAR)

        done = self.attempt(lambda: self.judge.answer(signed, pack_ids(ids), BOND, self.evm.now) or True, real)
        if done and challenger not in COALITION:
            self.won += BOND

    @rule(number=st.integers(0, 9), waits=st.sampled_from([0, ANSWER - 1, ANSWER, ANSWER]))
    def somebody_resolves(self, number: int, waits: int) -> None:
        challenges = self.open_challenges(LIAR)
        if not challenges:
            return
        self.pass_time(waits)
        self.resolve(*challenges[number % len(challenges)][:2])
        self.check_coalition()

    def resolve(self, accept: Accept, parties: Parties) -> None:
        before = self.judge.stakes[LIAR].total

        def twin() -> Any:
            said = self.judge.resolve(accept, parties, BOND, self.evm.now)
            self.slashed += before - self.judge.stakes[LIAR].total
            return said

        self.attempt(twin, lambda: self.court.resolve(accept, parties))

    # --- stake and credits ---

    @rule(provider=st.sampled_from([HONEST, LIAR]), amount=st.sampled_from([1, COVER, 5 * COVER, 16 * COVER]))
    def an_owner_unbonds(self, provider: str, amount: int) -> None:
        stake = self.judge.stakes[provider]
        if amount <= stake.bonded - 10 * COVER and len(stake.queue) < 16:
            self.court.staking.request_unbond(provider, amount, sender=provider)
            stake.bonded -= amount
            stake.queue.append((amount, self.evm.now + WINDOW))
            self.compare()

    @rule(provider=st.sampled_from([HONEST, LIAR]))
    def an_owner_withdraws(self, provider: str) -> None:
        stake = self.judge.stakes[provider]
        free = stake.total - min(stake.total, stake.frozen)
        paid = 0
        queue = list(stake.queue)
        while queue and queue[0][1] <= self.evm.now and paid < free:
            amount, release = queue.pop(0)
            cut = min(amount, free - paid)
            paid += cut
            if cut < amount:
                queue.insert(0, (amount - cut, release))
        if paid:
            self.court.staking.withdraw(provider, provider, sender=provider)
            stake.queue = queue
            self.withdrawn[Actor(KEYS_OWNER[provider])] += paid
            self.compare()

    @rule(account=st.sampled_from((*EVERYBODY, BURNED)))
    def somebody_fetches(self, account: str) -> None:
        for token in {self.court.asset, ZERO}:
            if self.court.credit(account, token):
                self.court.slashing.withdraw(token, account, sender=Actor("anybody"))
                if token == self.court.asset:
                    self.judge.credits[account] = 0
                if token == ZERO:
                    self.judge.bonds[account] = 0
        self.compare()

    # --- time ---

    @rule(seconds=st.one_of(st.integers(1, 100), st.sampled_from([600, 3_600, 80_000, WINDOW // 3])))
    def time_passes(self, seconds: int) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: int) -> None:
        """The honest provider answers what is open before its window can end."""
        self.honest_answers()
        self.evm.sleep(seconds)

    # --- at the end ---

    def honest_cannot_be_convicted(self) -> None:
        """Every message that it signed is held against it by every function, alone and in pairs and sets. What is
        refused for want of a commitment alone would convict."""
        COUNTS["messages of the honest provider"] += len(self.honest.receipts)
        for work in list(self.honest.working):
            assert isinstance(work, Work)
            self.honest.finish(0, (5,))
        self.evm.at_time(max(self.evm.now, self.honest.clock // 1000))
        receipts = self.honest.receipts
        proofs: list[Proof] = []
        for message in receipts:
            session = self.known_parties(message.receipt)
            for function in ("prove_overbilling", "prove_first_total", "prove_first_link", "prove_late"):
                proofs.append(Proof(KINDS[function], function, (message,), (session.struct,)))
            for ids in (*ANSWERS, (1, 2), (5,)):
                proofs.append(Proof(3, "prove_padding", (message,), (pack_ids(ids), session.struct)))
            for offer in self.judge.offers:
                proofs.append(Proof(6, "prove_wrong_offer", (message,), (session.struct, bytes.fromhex(offer[2:]))))
        pairs = [(a, b) for a in receipts for b in receipts if a.receipt.session == b.receipt.session]
        for a, b in pairs[-MOST_PAIRS:]:
            session = self.known_parties(b.receipt)
            for function in ("prove_equivocation", "prove_running_total", "prove_broken_chain"):
                proofs.append(Proof(KINDS[function], function, (a, b), (session.struct,)))
        for terms in self.world.offers:
            proofs += self.oversales(
                [m for m in receipts if m.receipt.offer_id == hex32(terms.id(HONEST))], terms.slots + 1
            )
        for proof in proofs:
            COUNTS["proofs against the honest provider"] += 1
            with pytest.raises(Reverted) as refused:
                getattr(self.court.slashing, proof.function)(*proof.arguments(bytes(32)), sender=REPORTERS[0])
            reason = refused.value.reason
            assert reason != "slashing: not committed", f"{proof.function} would convict: {proof.messages}"

    @staticmethod
    def oversales(messages: list[SignedReceipt], count: int) -> list[Proof]:
        """The sets that come nearest: around each receipt, the last to be accepted before it was finished."""
        found = []
        for message in messages[-20:]:
            near = [m for m in messages if m.receipt.accepted_at < message.receipt.finished_at]
            near.sort(key=lambda m: -m.receipt.finished_at)
            by_session = {m.receipt.session_id: m for m in reversed(near)}
            chosen = sorted(by_session.values(), key=lambda m: -m.receipt.finished_at)[:count]
            if len(chosen) == count:
                found.append(
                    Proof(OVERSOLD, "prove_oversold", tuple(sorted(chosen, key=lambda m: m.receipt.session_id)))
                )
        return found

    def everybody_leaves(self) -> None:
        """Challenges end, all stake goes, all credits are fetched: nothing is left in either contract."""
        court, judge = self.court, self.judge
        self.pass_time(ANSWER)
        for accept, parties, _ in self.open_challenges(LIAR):
            self.resolve(accept, parties)
        assert not any(is_open for _, _, is_open in judge.challenges.values())
        for provider in (HONEST, LIAR):
            for terms in self.world.offers:
                court.market.set_active(terms.id(provider), False, sender=provider)
            stake = judge.stakes[provider]
            if stake.bonded:
                if len(stake.queue) == 16:
                    court.staking.cancel_unbond(provider, sender=provider)
                court.staking.request_unbond(provider, court.staking.stake_of(provider), sender=provider)
        self.evm.sleep(WINDOW)
        for provider in (HONEST, LIAR):
            held, left = court.market.held(provider), judge.stakes[provider].total
            if left:
                court.staking.withdraw(provider, provider, sender=provider)
            assert court.market.held(provider) == held + left
        for account in (*EVERYBODY, BURNED):
            for token in {court.asset, ZERO}:
                if court.credit(account, token):
                    court.slashing.withdraw(token, account, sender=Actor("anybody"))
        for contract in (court.staking.address, court.slashing.address):
            assert self.evm.balance(contract) == court.market.held(contract) == 0, "something is left"
        self.check_coalition()


KEYS_OWNER = {HONEST: "honest provider", LIAR: "liar"}


def test_slashing_does_what_the_model_does(world: World) -> None:
    machine = type("Machine", (SlashingMachine,), {"world": world})
    run_state_machine_as_test(machine)
