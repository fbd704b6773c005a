# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Vault: what the contract owes to whom
@license MIT
@notice Balances by token and account. A credit never calls anybody; tokens move only in `_draw` and
    `_pay_in` (in) and in `_take_out` (out, at the owner's wish).
@dev No access control and no lock inside: the deployable checks who calls.

    One word per token and account, from the lowest bit:
        balance  128 bits  base units that the account may withdraw
        settled  128 bits  base units that streams have ever credited to it
    `settled` costs no slot of its own, and keeps the word of whoever has earned from becoming zero,
    so that a later credit stays cheap.
"""

from . import assets
from ..interfaces import IStreamPay

initializes: assets

MASK_128: constant(uint256) = 2**128 - 1
MAX_PAYMENTS: constant(uint256) = 32


interface IPermit2:
    def permitTransferFrom(
        permit: PermitTransferFrom, details: TransferDetails, owner: address, signature: Bytes[1024]
    ): nonpayable


struct TokenPermissions:
    token: address
    amount: uint256


struct PermitTransferFrom:
    permitted: TokenPermissions
    nonce: uint256
    deadline: uint256


struct TransferDetails:
    to: address
    amount: uint256


_PERMIT2: immutable(address)
_words: HashMap[address, HashMap[address, uint256]]  # token -> account -> word
# owner -> spender -> token -> base units that the spender may still pay for it; the maximum: without end
_spendable: HashMap[address, HashMap[address, HashMap[address, uint256]]]


@deploy
def __init__(permit2: address):
    """@param permit2 Where Permit2 lives on this chain; zero: it does not."""
    _PERMIT2 = permit2


@internal
@view
def _balance_of(token: address, account: address) -> uint256:
    return self._words[token][account] & MASK_128


@internal
@view
def _settled_of(token: address, account: address) -> uint256:
    return self._words[token][account] >> 128


@internal
def _credit(token: address, account: address, amount: uint256):
    """@notice Owe `amount` more to `account`."""
    word: uint256 = self._words[token][account]
    assert amount <= MASK_128 - (word & MASK_128), "vault: balance too large"
    self._words[token][account] = unsafe_add(word, amount)


@internal
def _settle(token: address, account: address, amount: uint256):
    """@notice Owe `amount` more to `account`, as the earnings of a stream."""
    word: uint256 = self._words[token][account]
    assert amount <= MASK_128 - (word & MASK_128), "vault: balance too large"
    # The count of what was ever settled stops at its maximum; it can never stop a payment.
    settled: uint256 = min((word >> 128) + amount, MASK_128)
    self._words[token][account] = unsafe_add(word & MASK_128, amount) | (settled << 128)


@internal
def _debit(token: address, account: address, amount: uint256):
    """@notice Owe `amount` less to `account`."""
    word: uint256 = self._words[token][account]
    assert amount <= word & MASK_128, "vault: balance too low"
    self._words[token][account] = unsafe_sub(word, amount)


@internal
def _pay_in(token: address, funder: address, account: address, amount: uint256, coins: uint256) -> uint256:
    """
    @notice Credit `account` with what `funder` pays in: `coins` that came with the call, or `amount`
        of an ERC-20 by allowance.
    @return What arrived.
    """
    arrived: uint256 = amount
    if token == assets.NATIVE:
        assert coins == amount, "vault: value is not the amount"
    else:
        self._require_no(coins)
        arrived = assets._pull(token, funder, amount)
    assert arrived > 0, "vault: nothing arrived"
    self._credit_from(funder, token, account, arrived)
    return arrived


@internal
def _spend(token: address, payer: address, amount: uint256, coins: uint256, from_vault: uint256) -> (uint256, uint256):
    """
    @notice Take `amount` from `payer`: the coins that came with the call, then at most `from_vault` of its
        vault balance. Coins that came in excess are credited to it. Calls nobody.
    @return How much the vault balance paid; and how much is lacking, which the caller must `_draw`.
    """
    if token == assets.NATIVE:
        if coins >= amount:
            if coins > amount:
                self._credit_from(payer, token, payer, unsafe_sub(coins, amount))
            return 0, 0
        lacking: uint256 = unsafe_sub(amount, coins)
        assert lacking <= from_vault, "vault: value too low"
        self._debit(token, payer, lacking)
        return lacking, 0

    self._require_no(coins)
    held: uint256 = 0
    if from_vault > 0:
        word: uint256 = self._words[token][payer]
        held = min(min(word & MASK_128, from_vault), amount)
        self._words[token][payer] = unsafe_sub(word, held)
    return held, unsafe_sub(amount, held)


@internal
def _draw(token: address, payer: address, lacking: uint256):
    """
    @notice Take `lacking` of an ERC-20 from the payer's allowance.
    @dev The token may call back: whatever the caller has to say of what it did, it has said before.
    """
    arrived: uint256 = assets._pull(token, payer, lacking)
    assert arrived >= lacking, "vault: the token kept a fee, deposit first"
    if arrived > lacking:
        self._credit_from(payer, token, payer, unsafe_sub(arrived, lacking))


@internal
def _pay(
    payer: address,
    token: address,
    payments: DynArray[IStreamPay.Payment, MAX_PAYMENTS],
    coins: uint256,
):
    """
    @notice Credit each account at the cost of `payer`: coins first, then its vault balance, then its allowance,
        as far as it lets the caller.
    """
    paid: uint256 = 0
    for payment: IStreamPay.Payment in payments:
        self._credit_from(payer, token, payment.account, payment.amount)
        paid = unsafe_add(paid, payment.amount)  # each is below 2**128
    if msg.sender != payer and paid > coins:
        more: uint256 = unsafe_sub(paid, coins)
        limit: uint256 = self._spendable[payer][msg.sender][token]
        assert more <= limit, "vault: not allowed so much"
        if limit != max_value(uint256):
            self._spendable[payer][msg.sender][token] = unsafe_sub(limit, more)
    spent: uint256 = 0
    lacking: uint256 = 0
    spent, lacking = self._spend(token, payer, paid, coins, max_value(uint256))
    if spent > 0:
        log IStreamPay.VaultSpent(token=token, account=payer, spender=msg.sender, amount=spent)
    if lacking > 0:
        self._draw(token, payer, lacking)


@internal
@pure
def _require_no(coins: uint256):
    assert coins == 0, "vault: value sent with a token"


@internal
def _credit_from(funder: address, token: address, account: address, amount: uint256):
    """@notice Owe `amount` more to `account`, and say who paid it."""
    assert account != empty(address), "vault: zero account"
    self._credit(token, account, amount)
    log IStreamPay.Deposited(token=token, account=account, funder=funder, amount=amount)


@internal
def _use_permit(token: address, owner: address, permit: IStreamPay.Permit):
    """@notice Make a signed allowance of `owner` good: set it (ERC-2612), or pay it in whole (Permit2)."""
    if permit.kind == IStreamPay.PermitKind.ERC2612:
        assert len(permit.signature) == 65, "vault: permit signature is not 65 bytes"
        # May fail, since anybody may have submitted it before: the allowance decides, not this call.
        submitted: bool = raw_call(
            token,
            abi_encode(
                owner,
                self,
                permit.amount,
                permit.deadline,
                convert(slice(permit.signature, 64, 1), uint256),
                extract32(permit.signature, 0),
                extract32(permit.signature, 32),
                method_id=method_id("permit(address,address,uint256,uint256,uint8,bytes32,bytes32)"),
            ),
            revert_on_failure=False,
        )
    elif permit.kind == IStreamPay.PermitKind.PERMIT2:
        assert _PERMIT2 != empty(address), "vault: no Permit2 on this chain"
        before: uint256 = assets._start_measuring(token)
        extcall IPermit2(_PERMIT2).permitTransferFrom(
            PermitTransferFrom(
                permitted=TokenPermissions(token=token, amount=permit.amount),
                nonce=permit.nonce,
                deadline=permit.deadline,
            ),
            TransferDetails(to=self, amount=permit.amount),
            owner,
            permit.signature,
        )
        self._credit_from(owner, token, owner, assets._stop_measuring(token, before))


@internal
def _take_out(token: address, account: address, amount: uint256, to: address):
    """@notice Pay `amount` of the account's balance to `to`. The last thing that a function does."""
    assert amount > 0, "vault: zero amount"
    assert to != empty(address), "vault: zero receiver"
    self._debit(token, account, amount)
    log IStreamPay.VaultWithdrawn(token=token, account=account, to=to, amount=amount)
    assets._push(token, to, amount)
