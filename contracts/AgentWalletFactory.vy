# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title AgentWalletFactory
@license MIT
@notice Makes agent wallets: minimal proxies (EIP-1167) whose address follows from all that they start with, so that
    nobody can make another wallet there, and money may be sent there first.
@dev Nobody has a role here, and the factory none in the wallets.
"""

from .interfaces import IAgentWallet

MAX_AT_START: constant(uint256) = 8

interface AgentWallet:
    def initialize(
        owner: address,
        guardian: address,
        limits: DynArray[IAgentWallet.Limit, MAX_AT_START],
        grants: DynArray[IAgentWallet.Grant, MAX_AT_START],
    ): nonpayable


event Created:
    wallet: indexed(address)
    owner: indexed(address)
    guardian: address


_IMPLEMENTATION: immutable(address)

_made: HashMap[address, bool]


@deploy
def __init__(implementation: address):
    """@param implementation The AgentWallet that every wallet runs."""
    assert implementation.is_contract, "factory: no implementation"
    _IMPLEMENTATION = implementation


@external
def create(
    owner: address,
    guardian: address,
    limits: DynArray[IAgentWallet.Limit, MAX_AT_START],
    grants: DynArray[IAgentWallet.Grant, MAX_AT_START],
    salt: bytes32,
) -> address:
    """
    @notice Make a wallet. Anyone may, for anyone; where the very same was made before, it stays as it is.
    @param guardian Who may pause it and revoke keys; zero: nobody but the owner.
    @param limits Caps by token.
    @param grants Keys that may spend.
    @return The wallet, at `wallet_address` of the same arguments.
    """
    name: bytes32 = keccak256(abi_encode(owner, guardian, limits, grants, salt))
    wallet: address = self._address(name)
    if self._made[wallet]:
        return wallet
    made: address = create_minimal_proxy_to(_IMPLEMENTATION, salt=name)
    assert made == wallet, "factory: made elsewhere"
    self._made[wallet] = True
    log Created(wallet=wallet, owner=owner, guardian=guardian)
    extcall AgentWallet(wallet).initialize(owner, guardian, limits, grants)
    return wallet


@external
@view
def wallet_address(
    owner: address,
    guardian: address,
    limits: DynArray[IAgentWallet.Limit, MAX_AT_START],
    grants: DynArray[IAgentWallet.Grant, MAX_AT_START],
    salt: bytes32,
) -> address:
    """@return Where `create` puts the wallet."""
    return self._address(keccak256(abi_encode(owner, guardian, limits, grants, salt)))


@external
@view
def is_wallet(account: address) -> bool:
    """@return Whether this factory made it."""
    return self._made[account]


@external
@view
def implementation() -> address:
    return _IMPLEMENTATION


@internal
@view
def _address(name: bytes32) -> address:
    """@dev CREATE2 of the proxy that Vyper makes."""
    code: bytes32 = keccak256(
        concat(
            x"602d3d8160093d39f3363d3d373d3d3d363d73",
            convert(_IMPLEMENTATION, bytes20),
            x"5af43d82803e903d91602b57fd5bf3",
        )
    )
    made: bytes32 = keccak256(concat(b"\xff", convert(self, bytes20), name, code))
    return convert(convert(made, uint256) & (2**160 - 1), address)
