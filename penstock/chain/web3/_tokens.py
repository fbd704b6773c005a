"""Tokens, and what accounts have of them."""

from __future__ import annotations

from eth_abi.exceptions import DecodingError

from penstock.chain._codec import ERC20
from penstock.chain._rpc import RpcError
from penstock.chain.web3._node import Node, raw
from penstock.errors import NoContract
from penstock.types import NATIVE, Address, Token


class Tokens(Node):
    async def token(self, token: Address) -> Token:
        if token not in self._tokens:
            symbol, decimals = await self._rpc.batch(
                [
                    self._eth_call(token, ERC20["symbol"].encode()),
                    self._eth_call(token, ERC20["decimals"].encode()),
                ]
            )
            try:
                name = _symbol(raw(symbol))
                places = int(ERC20["decimals"].decode(raw(decimals)))
            except (RpcError, DecodingError, ValueError):
                raise NoContract(f"{token} is no token: it has no symbol and decimals") from None
            self._tokens[token] = Token(token, name, places)
        return self._tokens[token]

    async def token_balance(self, token: Address, account: Address) -> int:
        if token == NATIVE:
            return await self.native_balance(account)
        return int(await self._view(token, ERC20["balanceOf"], account))

    async def allowance(self, token: Address, owner: Address) -> int:
        return int(await self._view(token, ERC20["allowance"], owner, self.stream_pay))

    async def permit_domain(self, token: Address, owner: Address) -> tuple[bytes, int] | None:
        if token == NATIVE:
            return None
        separator, nonce = await self._rpc.batch(
            [
                self._eth_call(token, ERC20["DOMAIN_SEPARATOR"].encode()),
                self._eth_call(token, ERC20["nonces"].encode(owner)),
            ]
        )
        try:
            return ERC20["DOMAIN_SEPARATOR"].decode(raw(separator)), int(ERC20["nonces"].decode(raw(nonce)))
        except (RpcError, DecodingError):
            return None


def _symbol(raw: bytes) -> str:
    """Some old tokens give 32 bytes instead of a string."""
    if len(raw) == 32:
        return raw.rstrip(b"\0").decode()
    return str(ERC20["symbol"].decode(raw))
