# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: MIT
"""
@title Staking
@license MIT
@notice The stake of Penstock's providers: what an identity costs, and what a fault costs. It leaves through
    a queue of 21 days, which stays slashable. There is no admin and no pause.

    What holds, each with its test:
    - the contract holds, of its asset, at least the sum of all stakes and queues;
    - only the provider's owner takes stake out, and only after the whole period;
    - only the slasher, fixed at deployment, takes it otherwise or freezes it; where it is zero, nobody ever can;
    - a provider with an active offer has the minimum staked, and the cover of every active slot, unless it
      was slashed;
    - what is frozen stays until the slasher takes it or lets it go, and holds back nothing beyond itself.
@dev Checks, effects, interactions; the lock is a second line of defence. Coins come in by `stake` alone.
    Coins or tokens that arrive by other ways belong to nobody and stay. An asset whose balances shrink by
    themselves is not supported.

    The word of a provider, from the lowest bit:
        bonded  128 bits  base units of the asset
        head     64 bits  index of the oldest entry of its exit queue
        tail     64 bits  index after the youngest; equal to head: the queue is empty
    The word of a queue entry, zero once it is gone:
        amount      128 bits  base units of the asset, never zero
        release_at   64 bits  block timestamp, seconds; never less than that of the entry before
        spare        64 bits  zero
"""

from .interfaces import IRegistry
from .interfaces import IStaking
from .modules import assets

implements: IStaking

initializes: assets

UNBONDING_PERIOD: constant(uint256) = 21 * 24 * 3600  # seconds
MAX_QUEUE: constant(uint256) = 16
MASK_64: constant(uint256) = 2**64 - 1
MASK_128: constant(uint256) = 2**128 - 1

_REGISTRY: immutable(address)
_ASSET: immutable(address)
_MINIMUM: immutable(uint256)  # base units
_COVER_PER_SLOT: immutable(uint256)  # base units
_SLASHER: immutable(address)

_words: HashMap[address, uint256]  # provider -> word as above
_queues: HashMap[address, HashMap[uint256, uint256]]  # provider -> index -> word as above
_frozen: HashMap[address, uint256]  # provider -> base units; may be more than it has left


@deploy
def __init__(
    registry: address, asset: address, minimum_stake: uint256, cover_per_slot: uint256, slasher: address
):
    """
    @param registry The contract that knows owners and offers; it may not exist yet.
    @param asset The token staked; zero: the native coin.
    @param minimum_stake Base units of the asset that a provider with an active offer has bonded; above 0.
    @param cover_per_slot Base units that it has bonded for each slot of its active offers; above 0.
    @param slasher The only one that may slash and freeze, which may not exist yet; zero: nobody, ever.
    """
    assert registry != empty(address), "staking: zero registry"
    assert asset == assets.NATIVE or asset.is_contract, "staking: asset is not a contract"
    assert minimum_stake > 0, "staking: zero minimum"
    assert minimum_stake <= MASK_128, "staking: minimum too large"
    assert cover_per_slot > 0, "staking: zero cover"
    assert cover_per_slot <= MASK_128, "staking: cover too large"
    _REGISTRY = registry
    _ASSET = asset
    _MINIMUM = minimum_stake
    _COVER_PER_SLOT = cover_per_slot
    _SLASHER = slasher


# --- stake in and out ----------------------------------------------------------------------------


@external
@payable
def stake(provider: address, amount: uint256):
    """
    @notice Add to a registered provider's stake. Anyone may pay; it belongs to the provider's owner.
    @param amount Base units: the value sent with the native coin, otherwise taken by allowance. What
        arrives is credited, less than `amount` where the token takes a fee.
    """
    assert staticcall IRegistry(_REGISTRY).owner_of(provider) != empty(address), "staking: no such provider"
    arrived: uint256 = amount
    if _ASSET == assets.NATIVE:
        assert msg.value == amount, "staking: value is not the amount"
    else:
        assert msg.value == 0, "staking: value sent with a token"
        arrived = assets._pull(_ASSET, msg.sender, amount)
    assert arrived > 0, "staking: nothing arrived"

    word: uint256 = self._words[provider]
    # Together with the queue it stays below 2**128, so that going back and forth cannot overflow.
    assert arrived <= MASK_128 - (word & MASK_128) - self._queued(provider), "staking: stake too large"
    word += arrived
    self._words[provider] = word
    log IStaking.Staked(provider=provider, funder=msg.sender, amount=arrived, stake=word & MASK_128)


@external
def request_unbond(provider: address, amount: uint256):
    """
    @notice Move stake to the exit queue, which holds 16 requests. Owner only. What covers the active offers
        stays; with none, all may go.
    @param amount Base units.
    """
    self._require_owner(provider)
    assert amount > 0, "staking: zero amount"
    word: uint256 = self._words[provider]
    bonded: uint256 = word & MASK_128
    assert amount <= bonded, "staking: more than is staked"
    bonded -= amount
    slots: uint64 = staticcall IRegistry(_REGISTRY).active_slots_of(provider)
    assert slots == 0 or self._covers(bonded, slots), "staking: active offers need their cover"
    head: uint256 = (word >> 128) & MASK_64
    tail: uint256 = word >> 192
    assert tail - head < MAX_QUEUE, "staking: exit queue is full"

    release_at: uint256 = block.timestamp + UNBONDING_PERIOD
    self._queues[provider][tail] = amount | (release_at << 128)
    self._words[provider] = self._pack(bonded, head, tail + 1)
    log IStaking.UnbondRequested(provider=provider, amount=amount, release_at=release_at, stake=bonded)


@external
def cancel_unbond(provider: address):
    """@notice Bond again all that is queued. Owner only."""
    self._require_owner(provider)
    word: uint256 = self._words[provider]
    head: uint256 = (word >> 128) & MASK_64
    tail: uint256 = word >> 192
    amount: uint256 = 0
    for i: uint256 in range(head, tail, bound=MAX_QUEUE):
        amount += self._queues[provider][i] & MASK_128
        self._queues[provider][i] = 0
    assert amount > 0, "staking: nothing is queued"
    bonded: uint256 = (word & MASK_128) + amount
    self._words[provider] = self._pack(bonded, tail, tail)
    log IStaking.UnbondCancelled(provider=provider, amount=amount, stake=bonded)


@external
def withdraw(provider: address, to: address):
    """
    @notice Pay out what has been in the queue for the whole period, oldest first. Owner only. What is frozen
        stays behind, in the queue or bonded, and nothing more.
    """
    self._require_owner(provider)
    assert to != empty(address), "staking: zero receiver"
    free: uint256 = max_value(uint256)
    frozen: uint256 = self._frozen[provider]
    if frozen > 0:
        free = self._slashable(provider)
        free -= min(free, frozen)
        assert free > 0, "staking: all of it is frozen"
    word: uint256 = self._words[provider]
    head: uint256 = (word >> 128) & MASK_64
    tail: uint256 = word >> 192
    first: uint256 = head
    amount: uint256 = 0
    for i: uint256 in range(head, tail, bound=MAX_QUEUE):
        entry: uint256 = self._queues[provider][i]
        if block.timestamp < entry >> 128 or amount == free:
            break
        cut: uint256 = min(entry & MASK_128, free - amount)
        amount += cut
        if cut < entry & MASK_128:
            self._queues[provider][i] = entry - cut
            break
        self._queues[provider][i] = 0
        first = i + 1
    assert amount > 0, "staking: nothing to withdraw yet"
    self._words[provider] = self._pack(word & MASK_128, first, tail)
    log IStaking.Unstaked(provider=provider, to=to, amount=amount)
    assets._push(_ASSET, to, amount)


# --- faults --------------------------------------------------------------------------------------


@external
def slash(provider: address, amount: uint256, to: address) -> uint256:
    """
    @notice Take stake for a proven fault: bonded first, then the queue from its youngest entry, which has
        longest to wait. Slasher only. Frozen stake may be taken, and stays counted as frozen until `unfreeze`.
    @param amount Base units.
    @param to Who receives it; if it refuses, nothing is taken.
    @return What was taken, at most `amount`; 0 where there is nothing to take.
    """
    assert msg.sender == _SLASHER, "staking: not the slasher"
    assert to != empty(address), "staking: zero receiver"
    word: uint256 = self._words[provider]
    bonded: uint256 = word & MASK_128
    head: uint256 = (word >> 128) & MASK_64
    tail: uint256 = word >> 192
    taken: uint256 = min(amount, bonded)
    bonded -= taken
    for i: uint256 in range(MAX_QUEUE):
        if taken == amount or tail == head:
            break
        entry: uint256 = self._queues[provider][tail - 1]
        cut: uint256 = min(amount - taken, entry & MASK_128)
        taken += cut
        if cut == entry & MASK_128:
            self._queues[provider][tail - 1] = 0
            tail -= 1
        else:
            self._queues[provider][tail - 1] = entry - cut
    if taken == 0:
        return 0
    self._words[provider] = self._pack(bonded, head, tail)
    log IStaking.Slashed(
        provider=provider, to=to, amount=taken, stake=bonded, unbonding=self._queued(provider)
    )
    assets._push(_ASSET, to, taken)
    return taken


@external
def freeze(provider: address, amount: uint256):
    """
    @notice Keep `amount` more of the provider's stake from being withdrawn, even where it has less: then all
        of it, and what comes later, up to that. Slasher only.
    @param amount Base units.
    """
    assert msg.sender == _SLASHER, "staking: not the slasher"
    frozen: uint256 = self._frozen[provider] + amount
    self._frozen[provider] = frozen
    log IStaking.StakeFrozen(provider=provider, amount=amount, frozen=frozen)


@external
def unfreeze(provider: address, amount: uint256):
    """
    @notice Take back `amount` of what was frozen. Slasher only.
    @param amount Base units.
    """
    assert msg.sender == _SLASHER, "staking: not the slasher"
    frozen: uint256 = self._frozen[provider]
    assert amount <= frozen, "staking: more than is frozen"
    self._frozen[provider] = frozen - amount
    log IStaking.StakeUnfrozen(provider=provider, amount=amount, frozen=frozen - amount)


# --- views ---------------------------------------------------------------------------------------


@external
@view
def stake_of(provider: address) -> uint256:
    """@return Bonded stake, the queue not counted."""
    return self._words[provider] & MASK_128


@external
@view
def slashable(provider: address) -> uint256:
    """@return Bonded stake and queue together."""
    return self._slashable(provider)


@external
@view
def frozen(provider: address) -> uint256:
    """@return What `withdraw` leaves in bonded stake and queue together; may be more than there is."""
    return self._frozen[provider]


@external
@view
def covers(provider: address, slots: uint64) -> bool:
    """@return True where the bonded stake is at least the minimum, and at least the cover of so many slots."""
    return self._covers(self._words[provider] & MASK_128, slots)


@external
@view
def unbonding(provider: address) -> DynArray[IStaking.Unbonding, MAX_QUEUE]:
    """@return The exit queue, oldest first."""
    word: uint256 = self._words[provider]
    queue: DynArray[IStaking.Unbonding, MAX_QUEUE] = []
    for i: uint256 in range((word >> 128) & MASK_64, word >> 192, bound=MAX_QUEUE):
        entry: uint256 = self._queues[provider][i]
        queue.append(
            IStaking.Unbonding(
                amount=convert(entry & MASK_128, uint128), release_at=convert(entry >> 128, uint64)
            )
        )
    return queue


@external
@view
def minimum_stake() -> uint256:
    """@return Base units that a provider with an active offer has bonded, however few its slots."""
    return _MINIMUM


@external
@view
def cover_per_slot() -> uint256:
    """@return Base units bonded for each slot of the active offers; what a fault costs is counted in it."""
    return _COVER_PER_SLOT


@external
@view
def unbonding_period() -> uint256:
    """@return Seconds."""
    return UNBONDING_PERIOD


@external
@view
def asset() -> address:
    """@return The token staked; the zero address is the native coin."""
    return _ASSET


@external
@view
def slasher() -> address:
    """@return The only contract that may slash and freeze; the zero address: none."""
    return _SLASHER


@external
@view
def registry() -> address:
    """@return The contract that knows owners and offers."""
    return _REGISTRY


# --- internal ------------------------------------------------------------------------------------


@internal
@view
def _require_owner(provider: address):
    assert msg.sender == staticcall IRegistry(_REGISTRY).owner_of(provider), "staking: not the owner"


@internal
@view
def _covers(bonded: uint256, slots: uint64) -> bool:
    return bonded >= max(_MINIMUM, convert(slots, uint256) * _COVER_PER_SLOT)


@internal
@view
def _slashable(provider: address) -> uint256:
    return (self._words[provider] & MASK_128) + self._queued(provider)


@internal
@view
def _queued(provider: address) -> uint256:
    word: uint256 = self._words[provider]
    total: uint256 = 0
    for i: uint256 in range((word >> 128) & MASK_64, word >> 192, bound=MAX_QUEUE):
        total += self._queues[provider][i] & MASK_128
    return total


@internal
@pure
def _pack(bonded: uint256, head: uint256, tail: uint256) -> uint256:
    return bonded | (head << 128) | (tail << 192)
