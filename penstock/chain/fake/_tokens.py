"""Tokens, and what accounts have of them."""

from __future__ import annotations

from penstock.chain.fake._node import Node, place_of
from penstock.chain.fake._rules.state import State
from penstock.errors import NoContract
from penstock.types import NATIVE, Address, Token


class Tokens(Node):
    # --- what a test does ---

    def create_token(self, symbol: str = "TUSD", decimals: int = 6) -> Address:
        """A plain ERC-20 with ERC-2612."""
        token = place_of(f"token {len(self._state.tokens)}")
        self._state.tokens[token] = Token(token, symbol, decimals)
        return token

    def mint(self, token: Address, to: Address, amount: int) -> None:
        """Base units."""
        balances = self._state.balances
        balances[token, to] = balances.get((token, to), 0) + amount

    # --- reading ---

    async def token(self, token: Address) -> Token:
        tokens = (await self._latest()).state.tokens
        if token == NATIVE:
            return Token(NATIVE, "BNB", 18)
        if token not in tokens:
            raise NoContract(f"{token} is no token: it has no symbol and decimals")
        return tokens[token]

    async def token_balance(self, token: Address, account: Address) -> int:
        if token == NATIVE:
            return await self.native_balance(account)
        state = await self._with_token(token)
        return state.balances.get((token, account), 0)

    async def allowance(self, token: Address, owner: Address) -> int:
        state = await self._with_token(token)
        return state.allowances.get((token, owner), 0)

    async def permit_domain(self, token: Address, owner: Address) -> tuple[bytes, int] | None:
        state = (await self._latest()).state
        if token not in state.tokens:
            return None
        return self.contracts.permit_separator(state.tokens[token]), state.permits.get((token, owner), 0)

    async def _with_token(self, token: Address) -> State:
        state = (await self._latest()).state
        if token not in state.tokens:
            raise NoContract(f"{token} does not answer as a token does")
        return state
