# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Registry
@license MIT
@notice Who sells inference on Penstock, where, and at what price. There is no admin: a provider's records
    are changed by its owner alone, an offer's terms by nobody, and anyone may take an offer off the
    market whose provider's stake no longer covers what it has on the market.

    What holds, each with its test:
    - a provider's id never changes, and never names another provider;
    - an offer's id is the hash of its terms, so that a message that names an offer names its price;
    - every signer that a provider ever had stays on record with its dates;
    - an offer comes on the market only where the stake covers it and all that its provider has there;
    - the price indexes hold the active offers, and nothing else.
@dev Moves no money, and calls nobody but the staking contract's views. It and the staking contract name
    each other: each is deployed with the other's address to come.
"""

from .interfaces import IRegistry
from .interfaces import IStaking
from .modules import identities
from .modules import listings
from .modules import price_index

implements: IRegistry

initializes: identities
initializes: price_index
initializes: listings[price_index := price_index]

# How many offers without stake `cheapest_offer` passes over before it asks for them to be delisted.
MAX_UNBACKED: constant(uint256) = 16

_STAKING: immutable(address)


@deploy
def __init__(staking: address):
    """@param staking The contract that knows whose stake covers what; it may not exist yet."""
    assert staking != empty(address), "registry: zero staking contract"
    _STAKING = staking


# --- providers -----------------------------------------------------------------------------------


@external
def register(
    payee: address,
    signer: address,
    service: IRegistry.Service,
    endpoint: String[200],
    metadata_uri: String[200],
    metadata_hash: bytes32,
    agent_id: uint256,
):
    """
    @notice Register the caller as a provider that it owns; its id is the caller's address for ever.
    @param payee Whom streams must pay.
    @param signer The key that signs receipts.
    @param service Exactly one.
    @param endpoint Base URL of the gateway, 1 to 200 bytes.
    @param metadata_uri Where a description is; may be empty.
    @param metadata_hash keccak256 of what `metadata_uri` serves; 0: none.
    @param agent_id ERC-8004 identity; 0: none.
    """
    identities._register(
        msg.sender, payee, signer, service, endpoint, metadata_uri, metadata_hash, agent_id
    )


@external
def set_endpoint(provider: address, endpoint: String[200]):
    """@notice Move the gateway to another base URL, 1 to 200 bytes. Owner only."""
    self._require_owner(provider)
    identities._set_endpoint(provider, endpoint)


@external
def set_metadata(provider: address, metadata_uri: String[200], metadata_hash: bytes32, agent_id: uint256):
    """@notice Replace the description and the ERC-8004 agent id. Owner only."""
    self._require_owner(provider)
    identities._set_metadata(provider, metadata_uri, metadata_hash, agent_id)


@external
def set_payee(provider: address, payee: address):
    """@notice Have later streams pay another address. Open streams keep theirs. Owner only."""
    self._require_owner(provider)
    identities._set_payee(provider, payee)


@external
def set_signer(provider: address, signer: address):
    """
    @notice Rotate the key that signs receipts. The previous one stays on record with its dates, and
        what it signed stays slashable. At most 16 in a second. Owner only.
    """
    self._require_owner(provider)
    identities._set_signer(provider, signer)


@external
def transfer_ownership(provider: address, owner: address):
    """@notice Offer the provider to another owner, who must accept; the zero address withdraws the offer."""
    self._require_owner(provider)
    identities._offer_ownership(provider, owner)


@external
def accept_ownership(provider: address):
    """@notice Take over a provider that was offered to the caller."""
    assert msg.sender == identities._pending_owners[provider], "registry: not the pending owner"
    identities._change_owner(provider, msg.sender)


# --- offers --------------------------------------------------------------------------------------


@external
def create_offer(provider: address, terms: IRegistry.Terms) -> bytes32:
    """
    @notice Publish an active offer. The stake must cover its slots beside those active already. Owner only.
    @return Its id, `offer_id_of(provider, terms)`.
    """
    self._require_owner(provider)
    self._require_cover(provider, terms.slots)
    return listings._create(provider, terms)


@external
def set_offer_active(offer_id: bytes32, active: bool):
    """@notice Take an offer off the market, or put it back (which needs stake as creating it did). Owner only."""
    provider: address = self._provider_of(offer_id)
    self._require_owner(provider)
    if active:
        assert not listings._is_active(offer_id), "registry: offer already active"
        self._require_cover(provider, listings._slots(offer_id))
        listings._list(offer_id)
    else:
        assert listings._is_active(offer_id), "registry: offer not active"
        listings._unlist(offer_id)
    log IRegistry.OfferActiveChanged(offer_id=offer_id, provider=provider, active=active)


@external
def delist(offer_id: bytes32):
    """@notice Anyone may take an offer off the market whose provider's stake no longer covers all its active ones."""
    provider: address = self._provider_of(offer_id)
    assert listings._is_active(offer_id), "registry: offer not active"
    assert not self._covered(provider, 0), "registry: provider has its stake"
    listings._unlist(offer_id)
    log IRegistry.OfferActiveChanged(offer_id=offer_id, provider=provider, active=False)


# --- views: providers ----------------------------------------------------------------------------


@external
@view
def provider(provider: address) -> IRegistry.Provider:
    """@return All zero where there is no such provider."""
    word: uint256 = identities._words[provider]
    if word == 0:
        return empty(IRegistry.Provider)
    signers: uint256 = identities._signer_count(provider)
    return IRegistry.Provider(
        owner=identities._owner(provider),
        pending_owner=identities._pending_owners[provider],
        payee=identities._payees[provider],
        signer=convert(identities._signer_word(provider, signers - 1) & identities.MASK_160, address),
        service=convert((word >> 200) & identities.MASK_8, IRegistry.Service),
        registered_at=convert((word >> 160) & identities.MASK_40, uint64),
        active_offers=convert(listings._active_count(provider), uint32),
        agent_id=identities._agent_ids[provider],
        metadata_hash=identities._metadata_hashes[provider],
        endpoint=identities._endpoints[provider],
        metadata_uri=identities._metadata_uris[provider],
    )


@external
@view
def owner_of(provider: address) -> address:
    """@return The zero address where there is no such provider."""
    return identities._owner(provider)


@external
@view
def active_offers_of(provider: address) -> uint32:
    """@return How many of the provider's offers are on the market."""
    return convert(listings._active_count(provider), uint32)


@external
@view
def active_slots_of(provider: address) -> uint64:
    """@return Slots of the provider's active offers together, which its stake must cover; 0: it has none."""
    return listings._active_slots(provider)


@external
@view
def provider_count() -> uint256:
    """@return How many providers have ever registered."""
    return identities._provider_count


@external
@view
def providers(start: uint256, limit: uint256) -> DynArray[address, 100]:
    """@notice A page of provider ids in order of registration; at most 100."""
    return identities._page(start, limit)


@external
@view
def signer_count(provider: address) -> uint256:
    """@return How many signer periods there have been, the one in force included."""
    return identities._signer_count(provider)


@external
@view
def signer_period(provider: address, index: uint256) -> IRegistry.SignerPeriod:
    """@notice Period `index`, from 0, oldest first."""
    return identities._signer_period(provider, index)


@external
@view
def was_signer(provider: address, signer: address, timestamp: uint64) -> bool:
    """
    @return True where `signer` was the provider's signer at some moment of that second. In a second of
        a rotation several were. A second to come counts for the signer now in force.
    """
    return identities._was_signer(provider, signer, convert(timestamp, uint256))


# --- views: offers -------------------------------------------------------------------------------


@external
@view
def offer(offer_id: bytes32) -> IRegistry.Offer:
    """@return All zero where there is no such offer."""
    return listings._get(offer_id)


@external
@view
def figures_of(offer_id: bytes32) -> IRegistry.Figures:
    """@notice Without the strings, for contracts: at a third of the cost. All zero where there is no such offer."""
    return listings._figures(offer_id)


@external
@pure
def offer_id_of(provider: address, terms: IRegistry.Terms) -> bytes32:
    """@return keccak256(abi_encode(provider, terms))."""
    return listings._id(provider, terms)


@external
@view
def offer_count() -> uint256:
    """@return How many offers have ever been made."""
    return listings._offer_count


@external
@view
def offers(start: uint256, limit: uint256) -> DynArray[bytes32, 100]:
    """@notice A page of offer ids in order of creation, inactive ones included; at most 100."""
    return listings._page(start, limit)


@external
@view
def offers_of(provider: address, start: uint256, limit: uint256) -> DynArray[bytes32, 100]:
    """@notice A page of one provider's offer ids, inactive ones included; at most 100."""
    return listings._page_of(provider, start, limit)


@external
@view
def active_offers(
    model: String[96], token: address, basis: IRegistry.Basis, start: uint256, limit: uint256
) -> DynArray[bytes32, 100]:
    """@notice A page of the active offers of a model in a token; the order is not by price and may change."""
    return listings._page_active(listings._key(keccak256(model), token, listings._side(basis)), start, limit)


@external
@view
def cheapest_offer(model: String[96], token: address, basis: IRegistry.Basis) -> (bytes32, uint96):
    """
    @notice The lowest-priced active offer of a provider whose stake covers its active ones; among equals the
        oldest. Reverts where more than 15 cheaper ones lack that: they are to be delisted, by anyone.
    @return Its id and price in this basis; (0, 0) where there is none.
    """
    key: bytes32 = listings._key(keccak256(model), token, listings._side(basis))
    entry: uint256 = 0
    for i: uint256 in range(MAX_UNBACKED):
        entry = price_index._least_above(key, entry)
        if entry == 0:
            return empty(bytes32), 0
        id: bytes32 = listings._ids[entry & price_index.MASK_32]
        if self._covered(listings._provider_of(id), 0):
            return id, convert(entry >> 32, uint96)
    raise "registry: delist what has no stake"


@external
@view
def staking() -> address:
    """@return The contract that knows whose stake covers what."""
    return _STAKING


# --- internal ------------------------------------------------------------------------------------


@internal
@view
def _require_owner(provider: address):
    assert msg.sender == identities._owner(provider), "registry: not the owner"


@internal
@view
def _require_cover(provider: address, slots: uint32):
    assert self._covered(provider, slots), "registry: too little stake for the slots"


@internal
@view
def _covered(provider: address, more: uint32) -> bool:
    """@return True where the stake covers the provider's active offers and `more` slots."""
    # No overflow: fewer than 2**32 offers, of fewer than 2**32 slots each.
    slots: uint64 = unsafe_add(listings._active_slots(provider), convert(more, uint64))
    return staticcall IStaking(_STAKING).covers(provider, slots)


@internal
@view
def _provider_of(offer_id: bytes32) -> address:
    provider: address = listings._provider_of(offer_id)
    assert provider != empty(address), "registry: no such offer"
    return provider
