"""Slashing: faults, challenges, and what they bring."""

from __future__ import annotations

from collections.abc import Callable

from penstock.chain.fake._node import Node
from penstock.chain.fake._rules.slashing import BOND, SlashingRules, penalty
from penstock.events import Receipt, Verdict
from penstock.faults import Fault
from penstock.keys import Account
from penstock.types import Address, Challenge, StreamId, StreamKey
from penstock.wire.eip712 import Domain
from penstock.wire.receipts import Accept, SignedAccept, SignedReceipt


class Slashing(Node):
    # --- reading ---

    async def penalty(self, kind: int) -> int:
        await self._latest()
        return penalty(self.contracts, kind)

    async def challenge_bond(self) -> int:
        await self._latest()
        return BOND

    async def challenge(self, id: str) -> Challenge | None:
        return (await self._latest()).state.challenges.get(id)

    async def committed_at(self, commitment: bytes) -> int:
        return (await self._latest()).state.commitments.get(commitment, 0)

    async def is_proven(self, kind: int, provider: Address, session: StreamId, start: int, seq: int) -> bool:
        return (kind, provider, session, start, seq) in (await self._latest()).state.proven

    async def compensated(self, provider: Address, session: StreamId, start: int) -> int:
        return (await self._latest()).state.compensated.get((provider, session, start), 0)

    async def slashing_credit(self, token: Address, account: Address) -> int:
        return (await self._latest()).state.credits.get((token, account), 0)

    async def verdicts(self, first: int, last: int) -> list[Verdict]:
        return [verdict for mined in await self._between(first, last) for verdict in mined.verdicts]

    # --- writing ---

    async def commit(self, reporter: Account, commitment: bytes) -> Receipt:
        return await self._judge(reporter, "announcing a proof", lambda judge: judge.commit(commitment))

    async def prove(self, reporter: Account, fault: Fault, salt: bytes) -> Receipt:
        return await self._judge(reporter, f"proving {fault.kind.words}", lambda judge: judge.prove(fault, salt))

    async def open_challenge(self, challenger: Account, signed: SignedAccept, key: StreamKey) -> Receipt:
        return await self._judge(
            challenger, "asking for a receipt", lambda judge: judge.open_challenge(signed, key, BOND), BOND
        )

    async def answer_challenge(self, sender: Account, signed: SignedReceipt, ids: bytes) -> Receipt:
        return await self._judge(sender, "showing a receipt", lambda judge: judge.answer_challenge(signed, ids))

    async def resolve_challenge(self, sender: Account, accept: Accept, key: StreamKey) -> Receipt:
        return await self._judge(sender, "resolving the challenge", lambda judge: judge.resolve_challenge(accept, key))

    async def withdraw_credit(self, sender: Account, token: Address, account: Address) -> Receipt:
        return await self._judge(sender, "withdrawing from Slashing", lambda judge: judge.withdraw(token, account))

    async def _judge(
        self, account: Account, doing: str, act: Callable[[SlashingRules], None], value: int = 0
    ) -> Receipt:
        return await self._transact(account, doing, lambda tx: act(SlashingRules(tx)), value, to=self.slashing)

    # --- the domain of receipts ---

    @property
    def slashing_domain(self) -> Domain:
        return self.contracts.slashing_domain
