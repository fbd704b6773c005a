# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Who the providers are, and with which key each of them signed when
@license MIT
@notice A provider is the address that registered it. Signers are never forgotten: each has been in force
    from the second in which it was set to the second in which the next one was set, both included, so
    that no second is without a signer and a key rotated out answers for all it may have signed.
@dev No access control inside: the deployable checks who calls.

    The word of a provider, from the lowest bit; zero: no such provider
        owner          160 bits  never zero
        registered_at   40 bits  block timestamp, seconds
        service          8 bits
        signers         32 bits  how many there have been, at least 1
        spare           16 bits  zero
    The word of a signer
        signer         160 bits
        since           40 bits  block timestamp, seconds; never less than that of the one before
        spare           56 bits  zero
"""

from ..interfaces import IRegistry

MASK_8: constant(uint256) = 2**8 - 1
MASK_32: constant(uint256) = 2**32 - 1
MASK_40: constant(uint256) = 2**40 - 1
MASK_160: constant(uint256) = 2**160 - 1
MAX_PROVIDERS: constant(uint256) = 2**32
MAX_SIGNERS: constant(uint256) = 2**32 - 1
# So many rotations may share a second. It bounds the search of `_was_signer`: nobody can make his own
# history too long to be judged by.
MAX_SIGNERS_A_SECOND: constant(uint256) = 16

_words: HashMap[address, uint256]  # provider -> word as above
_pending_owners: HashMap[address, address]
_payees: HashMap[address, address]
_agent_ids: HashMap[address, uint256]
_endpoints: HashMap[address, String[200]]
_metadata_uris: HashMap[address, String[200]]
_metadata_hashes: HashMap[address, bytes32]
_signers: HashMap[address, uint256[MAX_SIGNERS]]  # provider -> words as above, oldest first
_providers: HashMap[uint256, address]             # in order of registration
_provider_count: uint256


@internal
@view
def _owner(provider: address) -> address:
    """@return The zero address where there is no such provider."""
    return convert(self._words[provider] & MASK_160, address)


@internal
@view
def _signer_word(provider: address, index: uint256) -> uint256:
    return self._signers[provider][index]


@internal
@view
def _signer_count(provider: address) -> uint256:
    return (self._words[provider] >> 208) & MASK_32


@internal
def _register(
    provider: address,
    payee: address,
    signer: address,
    service: IRegistry.Service,
    endpoint: String[200],
    metadata_uri: String[200],
    metadata_hash: bytes32,
    agent_id: uint256,
):
    """@notice The provider owns itself until it hands itself over."""
    assert self._words[provider] == 0, "registry: already registered"
    assert payee != empty(address), "registry: zero payee"
    assert signer != empty(address), "registry: zero signer"
    assert (
        service == IRegistry.Service.INFERENCE or service == IRegistry.Service.AUDIT or service == IRegistry.Service.DATA
    ), "registry: not one service"
    assert len(endpoint) > 0, "registry: empty endpoint"

    self._words[provider] = (
        convert(provider, uint256) | (block.timestamp << 160) | (convert(service, uint256) << 200) | (1 << 208)
    )
    self._signers[provider][0] = convert(signer, uint256) | (block.timestamp << 160)
    self._payees[provider] = payee
    self._endpoints[provider] = endpoint
    self._metadata_uris[provider] = metadata_uri
    self._metadata_hashes[provider] = metadata_hash
    self._agent_ids[provider] = agent_id
    count: uint256 = self._provider_count
    self._providers[count] = provider
    self._provider_count = count + 1
    log IRegistry.ProviderRegistered(
        provider=provider,
        owner=provider,
        payee=payee,
        signer=signer,
        service=service,
        agent_id=agent_id,
        endpoint=endpoint,
        metadata_uri=metadata_uri,
        metadata_hash=metadata_hash,
    )


@internal
def _set_endpoint(provider: address, endpoint: String[200]):
    assert len(endpoint) > 0, "registry: empty endpoint"
    self._endpoints[provider] = endpoint
    log IRegistry.EndpointChanged(provider=provider, endpoint=endpoint)


@internal
def _set_metadata(provider: address, metadata_uri: String[200], metadata_hash: bytes32, agent_id: uint256):
    self._metadata_uris[provider] = metadata_uri
    self._metadata_hashes[provider] = metadata_hash
    self._agent_ids[provider] = agent_id
    log IRegistry.MetadataChanged(
        provider=provider, metadata_uri=metadata_uri, metadata_hash=metadata_hash, agent_id=agent_id
    )


@internal
def _set_payee(provider: address, payee: address):
    assert payee != empty(address), "registry: zero payee"
    previous: address = self._payees[provider]
    self._payees[provider] = payee
    log IRegistry.PayeeChanged(provider=provider, previous=previous, payee=payee)


@internal
def _set_signer(provider: address, signer: address):
    assert signer != empty(address), "registry: zero signer"
    count: uint256 = self._signer_count(provider)
    previous: address = convert(self._signers[provider][count - 1] & MASK_160, address)
    assert signer != previous, "registry: already the signer"
    assert count < MAX_SIGNERS, "registry: too many signers"
    if count >= MAX_SIGNERS_A_SECOND:
        since: uint256 = self._signers[provider][count - MAX_SIGNERS_A_SECOND] >> 160
        assert since < block.timestamp, "registry: too many signers in a second"
    self._signers[provider][count] = convert(signer, uint256) | (block.timestamp << 160)
    self._words[provider] += 1 << 208
    log IRegistry.SignerChanged(provider=provider, previous=previous, signer=signer)


@internal
def _offer_ownership(provider: address, owner: address):
    self._pending_owners[provider] = owner
    log IRegistry.OwnershipTransferStarted(provider=provider, owner=self._owner(provider), pending_owner=owner)


@internal
def _change_owner(provider: address, owner: address):
    """@param owner Never zero."""
    word: uint256 = self._words[provider]
    previous: address = convert(word & MASK_160, address)
    self._words[provider] = (word & ~MASK_160) | convert(owner, uint256)
    self._pending_owners[provider] = empty(address)
    log IRegistry.OwnershipTransferred(provider=provider, previous=previous, owner=owner)


@internal
@view
def _signer_period(provider: address, index: uint256) -> IRegistry.SignerPeriod:
    count: uint256 = self._signer_count(provider)
    assert index < count, "registry: no such signer period"
    word: uint256 = self._signers[provider][index]
    until: uint64 = max_value(uint64)
    if index + 1 < count:
        until = convert(self._signers[provider][index + 1] >> 160, uint64)
    return IRegistry.SignerPeriod(
        signer=convert(word & MASK_160, address), since=convert(word >> 160, uint64), until=until
    )


@internal
@view
def _was_signer(provider: address, signer: address, timestamp: uint256) -> bool:
    """
    @notice True where `signer` was in force at some moment of that second, past or to come.
    @dev Halves the history to the last signer set by that second, then goes back over those that
        were replaced within it and the one that it began with.
    """
    low: uint256 = 0  # the signers below `low` were set by then
    high: uint256 = self._signer_count(provider)  # those from `high` on were not
    for i: uint256 in range(32):
        if low == high:
            break
        middle: uint256 = (low + high) >> 1
        if self._signers[provider][middle] >> 160 <= timestamp:
            low = middle + 1
        else:
            high = middle
    for i: uint256 in range(MAX_SIGNERS_A_SECOND + 1):
        if low == 0:
            return False
        low -= 1
        word: uint256 = self._signers[provider][low]
        if convert(word & MASK_160, address) == signer:
            return True
        if word >> 160 < timestamp:
            return False
    return False


@internal
@view
def _page(start: uint256, limit: uint256) -> DynArray[address, 100]:
    page: DynArray[address, 100] = []
    count: uint256 = self._provider_count
    for i: uint256 in range(100):
        if i >= limit or start >= count or i >= count - start:
            break
        page.append(self._providers[start + i])
    return page
