"""The blocks of a chain in memory, what a test does to it, and how a transaction runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from eth_utils.crypto import keccak

from penstock.chain.calls import Mined
from penstock.chain.fake._rules.state import FakeBlock, State
from penstock.chain.fake._rules.transaction import Contracts, Refused, Transaction
from penstock.chain.port import Noted
from penstock.errors import InsufficientFunds, NodeUnavailable, Reverted, TransactionLost
from penstock.events import Receipt
from penstock.keys import Account
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import Address, Block, address, hex32
from penstock.units import format_amount

START = 1_800_000_000
"""The first block's timestamp, where no clock is given."""
MINIMUM_STAKE = 10**17
COVER_PER_SLOT = MINIMUM_STAKE // 10
"""What a fault costs, too."""
GAS = 60_000
"""Of every transaction."""
GAS_PRICE = 10**9


class Node:
    def __init__(
        self,
        *,
        chain_id: int = LOCAL_CHAIN_ID,
        clock: Callable[[], int] | None = None,
        minimum_stake: int = MINIMUM_STAKE,
        cover_per_slot: int = COVER_PER_SLOT,
        places: Mapping[str, Address] | None = None,
    ) -> None:
        """`clock` gives Unix seconds; without one, time moves by `advance` alone. `places`: where contracts are, by
        name, for who wants them at the addresses of real ones."""
        names = ("StreamPay", "Registry", "Staking", "Slashing", "Catalogue", "License", "AgentWalletFactory")
        at = {name: place_of(name) for name in names} | dict(places or {})
        self.chain_id = chain_id
        self.stream_pay = at["StreamPay"]
        self.registry = at["Registry"]
        self.staking = at["Staking"]
        self.slashing = at["Slashing"]
        self.catalogue = at["Catalogue"]
        self.license = at["License"]
        self.wallet_factory = at["AgentWalletFactory"]
        self.contracts = Contracts(
            chain_id, minimum_stake, cover_per_slot, self.stream_pay, self.slashing, self.license
        )
        self._clock = clock
        self._made = 0
        first = Block(0, self._hash(), "0x" + "00" * 32, clock() if clock else START)
        self._blocks = [FakeBlock(first, State(treasury=place_of("treasury")))]
        self._out = False
        self._to_lose: list[bool] = []

    # --- what a test does to it ---

    @property
    def now(self) -> int:
        """The timestamp of the next block."""
        last = self._blocks[-1].block.timestamp
        return max(last, self._clock()) if self._clock else last

    def advance(self, seconds: int) -> int:
        """Let so much time pass, and mine a block. Its timestamp. Not with a clock of your own."""
        assert self._clock is None, "move the clock that was given"
        self._mine(self._state.copy(), self.now + seconds)
        return self.now

    def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self._mine(self._state.copy(), self.now)

    def set_balance(self, account: Address, amount: int) -> None:
        """Coins: base units."""
        self._state.coins[account] = amount

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Inside, the node does not answer."""
        self._out = True
        try:
            yield
        finally:
            self._out = False

    def lose_next(self, *, mined: bool = False) -> None:
        """The next transaction raises TransactionLost; `mined`: it takes effect all the same."""
        self._to_lose.append(mined)

    def reorg(self, depth: int) -> None:
        """Replace the last `depth` blocks by as many empty ones; what happened in them is undone."""
        assert depth < len(self._blocks), "the chain is not that long"
        gone = self._blocks[-depth:]
        del self._blocks[-depth:]
        for mined in gone:
            self._mine(self._state.copy(), mined.block.timestamp)

    # --- reading ---

    async def close(self) -> None:
        return None

    async def head(self) -> Block:
        return (await self._latest()).block

    async def block(self, number: int) -> Block | None:
        await self._latest()
        return self._blocks[number].block if 0 <= number < len(self._blocks) else None

    async def mined(self, transaction: str) -> Mined | None:
        await self._latest()
        for mined in reversed(self._blocks):
            if mined.receipt is not None and mined.receipt.transaction == transaction:
                return Mined(mined.receipt, mined.block.hash, True)
        return None

    async def nonces(self, account: Address) -> tuple[int, int]:
        await self._latest()
        nonce = sum(mined.sender == account for mined in self._blocks)
        return nonce, nonce

    async def native_balance(self, account: Address) -> int:
        return (await self._latest()).state.coins.get(account, 0)

    # --- how it runs ---

    @property
    def _state(self) -> State:
        return self._blocks[-1].state

    async def _latest(self) -> FakeBlock:
        """The last block. A clock of somebody else's makes empty blocks as it goes."""
        await asyncio.sleep(0)
        if self._out:
            raise NodeUnavailable("the node does not answer: there is an outage")
        if self.now > self._blocks[-1].block.timestamp:
            self._mine(self._state.copy(), self.now)
        return self._blocks[-1]

    async def _between(self, first: int, last: int) -> list[FakeBlock]:
        """These blocks, both ends included, as far as they are there."""
        await self._latest()
        return self._blocks[max(first, 0) : last + 1]

    def _hash(self) -> str:
        self._made += 1
        return hex32(keccak(text=f"made {self._made}"))

    def _mine(self, state: State, timestamp: int, tx: Transaction | None = None) -> None:
        """A block with this transaction, or an empty one."""
        last = self._blocks[-1].block
        block = Block(last.number + 1, tx.place[1] if tx else self._hash(), last.hash, timestamp)
        self._blocks.append(FakeBlock(block, state, *((tx.sender, _receipt_of(tx)) if tx else ())))

    async def _transact(
        self,
        account: Account,
        doing: str,
        act: Callable[[Transaction], None],
        value: int = 0,
        *,
        to: Address | None = None,
        noted: Noted | None = None,
    ) -> Receipt:
        """Try it on a copy of the state; what goes wrong leaves nothing behind."""
        await self._latest()
        name = self._hash()
        if noted is not None:
            self._tried(account.address, doing, act, value, to, name)
            await noted(name, (await self.nonces(account.address))[1])
        state, tx = self._tried(account.address, doing, act, value, to, name)
        if self._to_lose:
            if self._to_lose.pop(0):
                self._mine(state, tx.now, tx)
            raise TransactionLost(name, f"{doing}: transaction {name} was not mined in time; it may still be")
        self._mine(state, tx.now, tx)
        return _receipt_of(tx)

    def _tried(
        self,
        sender: Address,
        doing: str,
        act: Callable[[Transaction], None],
        value: int,
        to: Address | None,
        name: str,
    ) -> tuple[State, Transaction]:
        """The state after it, gas and all."""
        state = self._state.copy()
        held = state.coins.get(sender, 0)
        if held < value:
            raise InsufficientFunds(f"{doing}: {sender} has {_coins(held)}, needs {_coins(value)}")
        receiver = to or self.stream_pay
        state.coins[sender] = held - value
        state.coins[receiver] = state.coins.get(receiver, 0) + value
        place = (self._blocks[-1].block.number + 1, self._hash(), self.now, name)
        tx = Transaction(self.contracts, state, sender, value, doing, place)
        try:
            act(tx)
        except Refused as refusal:
            raise Reverted(str(refusal), doing=doing) from None
        fee = GAS * GAS_PRICE
        if held < value + fee:
            raise InsufficientFunds(f"{doing}: {sender} has {_coins(held)}, needs {_coins(value + fee)} with the gas")
        state.coins[sender] -= fee
        return state, tx


def _receipt_of(tx: Transaction) -> Receipt:
    number, _, now, name = tx.place
    return Receipt(name, number, now, GAS, GAS_PRICE, tuple(tx.events), tuple(tx.verdicts), tuple(tx.licences))


def place_of(name: str) -> Address:
    return address("0x" + keccak(text=f"penstock fake {name}")[-20:].hex())


def _coins(amount: int) -> str:
    return format_amount(amount, 18, "BNB")
