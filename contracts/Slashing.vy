# pragma version 0.4.3
# pragma nonreentrancy on
# SPDX-License-Identifier: MIT
"""
@title Slashing
@license MIT
@notice Judges what providers sign. A receipt that contradicts another one or the provider's own offer costs
    stake, by a rule that is checked here and by nobody's opinion; so does an accept for which no receipt can
    be shown. There is no admin, no pause and no oracle, and no rate that can change.

    What holds, each with its test:
    - a provider that keeps the rules of docs/spec.md is convicted by no set of messages that it signed;
    - a message counts only with the signature of a key that was the provider's in the second it is dated,
      for this contract and chain, and for 21 days, as long as unbonding stake can still be reached;
    - each fault costs once; what it costs is a constant part of one slot's cover, or what is left of the stake;
    - of what a fault costs the reporter gets a tenth, the payer of the session at most four tenths and, over
      all faults of the session, at most what it has paid in it; the rest is burned. A provider, its own
      consumer and its own reporter together always lose half or more;
    - who sees a proof before it is mined can neither give it itself nor keep it from being given;
    - a challenge costs its loser: an answer earns the bond, silence costs stake; and it ends;
    - it holds what it owes: credits, and the bonds of open challenges.
@dev Checks, effects, interactions. The one interaction in the middle is with the staking contract, which is
    fixed and calls nobody but the asset; what it sends is measured, and then only credited. All payments wait
    to be fetched. The lock is a second line of defence.

    Signatures of contracts (ERC-1271) do not count: a contract may say today that it signed and tomorrow that
    it did not, and evidence must not change.
"""

from .interfaces import IRegistry
from .interfaces import ISlashing
from .interfaces import IStaking
from .modules import assets
from .modules import convictions
from .modules import credits
from .modules import receipts
from .modules import signatures

implements: ISlashing

initializes: assets
initializes: convictions
initializes: credits
initializes: signatures

EQUIVOCATION: constant(uint256) = 1
OVERBILLING: constant(uint256) = 2
PADDING: constant(uint256) = 3
RUNNING_TOTAL: constant(uint256) = 4
BROKEN_CHAIN: constant(uint256) = 5
WRONG_OFFER: constant(uint256) = 6
OVERSOLD: constant(uint256) = 7
LATE: constant(uint256) = 8
NON_DELIVERY: constant(uint256) = 9

# Why these: docs/adr/0010-penalties.md.
MINOR_PART: constant(uint256) = 10  # a late or missing answer costs one part in so many of the cover of a slot
REPORTER_PERCENT: constant(uint256) = 10
VICTIM_PERCENT: constant(uint256) = 40
EVIDENCE_WINDOW: constant(uint256) = 21 * 24 * 3600  # seconds; the unbonding period
CHALLENGE_AFTER: constant(uint256) = 3600  # seconds from the accept
CHALLENGE_UNTIL: constant(uint256) = 24 * 3600  # seconds from the accept
ANSWER_WINDOW: constant(uint256) = 15 * 60  # seconds
# Token ids that a proof or an answer carries. A longer answer is not revealed, and its padding not provable.
MAX_IDS: constant(uint256) = 8192
# Offers with more slots than one less cannot be proven oversold.
MAX_RECEIPTS: constant(uint256) = 33
RATE_SCALE: constant(uint256) = 10**6
PRICE_SCALE: constant(uint256) = 10**6
BURNED: constant(address) = 0x000000000000000000000000000000000000dEaD
MASK_40: constant(uint256) = 2**40 - 1
MASK_160: constant(uint256) = 2**160 - 1
CLOSED: constant(uint256) = 1 << 200

_REGISTRY: immutable(address)
_STAKING: immutable(address)
_ASSET: immutable(address)  # of the stake
_COVER: immutable(uint256)  # base units of it, for one slot
_BOND: immutable(uint256)  # wei

_commitments: HashMap[bytes32, uint256]  # commitment -> number of its block
_challenges: HashMap[bytes32, uint256]  # digest of the accept -> challenger 160 | opened_at 40 | closed 1


@deploy
def __init__(registry: address, staking: address, bond: uint256):
    """
    @param registry The contract that knows signers and offers.
    @param staking The contract that holds the stake, with this one as its slasher; it is there already.
    @param bond Wei that a challenge costs whoever asks without need; above 0. It should pay for an answer's gas.
    """
    assert staking.is_contract, "slashing: staking is not a contract"
    assert staticcall IStaking(staking).slasher() == self, "slashing: not the slasher"
    assert staticcall IStaking(staking).registry() == registry, "slashing: not staking's registry"
    assert bond > 0, "slashing: zero bond"
    _REGISTRY = registry
    _STAKING = staking
    _ASSET = staticcall IStaking(staking).asset()
    _COVER = staticcall IStaking(staking).cover_per_slot()
    _BOND = bond
    assert _COVER >= MINOR_PART, "slashing: cover too small"
    signatures.__init__("Penstock Slashing", "1")


@external
@payable
@reentrant
def __default__():
    """@notice Takes the coins that are slashed, and no others."""
    assert msg.sender == _STAKING, "slashing: coins from a stranger"


# --- faults --------------------------------------------------------------------------------------


@external
def commit(commitment: bytes32):
    """
    @notice Announce a proof without telling it: it can be given from the next block on. Who copies it from
        the pool gains nothing, since it names its reporter.
    @param commitment keccak256(abi_encode(reporter, salt, evidence)), where evidence is keccak256 of the kind of
        the fault, as 32 bytes, and the digests of its receipts in the order in which the proof gives them.
    """
    assert self._commitments[commitment] == 0, "slashing: already committed"
    self._commitments[commitment] = block.number
    log ISlashing.Committed(commitment=commitment, account=msg.sender)


@external
def prove_equivocation(
    a: ISlashing.Receipt,
    signature_a: Bytes[65],
    b: ISlashing.Receipt,
    signature_b: Bytes[65],
    session: ISlashing.Session,
    salt: bytes32,
):
    """
    @notice Two different receipts have one place in one session.
    @param session What the session's id is the hash of, with the offer of `a`.
    @param salt The one of the caller's commitment.
    """
    assert receipts._is_one_place(a, b), "slashing: not one place of one session"
    self._require_session(a.session_id, session, a.offer_id)
    hash_a: bytes32 = receipts._hash(a)
    hash_b: bytes32 = receipts._hash(b)
    assert hash_a != hash_b, "slashing: the same receipt twice"
    separator: bytes32 = signatures._domain_separator()
    digest_a: bytes32 = self._require_signed(separator, hash_a, a.provider, a.finished_at, signature_a)
    digest_b: bytes32 = self._require_signed(separator, hash_b, b.provider, b.finished_at, signature_b)
    evidence: bytes32 = keccak256(abi_encode(EQUIVOCATION, digest_a, digest_b))
    total: uint128 = max(a.total, b.total)
    until: uint64 = max(a.finished_at, b.finished_at)
    self._convict(
        EQUIVOCATION, evidence, a.provider, a.session_id, a.start, a.seq, session, a.offer_id, total, until, salt
    )


@external
def prove_overbilling(r: ISlashing.Receipt, signature: Bytes[65], session: ISlashing.Session, salt: bytes32):
    """@notice A receipt's amount is above what its tokens cost by its offer, rounded up."""
    offer: IRegistry.Figures = self._offer_of(r)
    price: uint256 = convert(r.prompt_tokens, uint256) * convert(offer.prompt_price, uint256)
    price += convert(r.completion_tokens, uint256) * convert(offer.completion_price, uint256)
    # Compared in millionths: above the rounded price is above the price and one base unit less a millionth.
    assert (
        convert(r.amount, uint256) * PRICE_SCALE >= price + PRICE_SCALE
    ), "slashing: no more than the offer's price"
    self._convict_one(OVERBILLING, r, signature, session, r.offer_id, salt)


@external
def prove_padding(
    r: ISlashing.Receipt, signature: Bytes[65], ids: Bytes[4 * MAX_IDS], session: ISlashing.Session, salt: bytes32
):
    """
    @notice A receipt bills more completion tokens than there are ids behind its output's hash.
    @param ids The answer's token ids, packed as big-endian uint32; of several choices, one after the other.
    """
    assert keccak256(ids) == r.output_hash, "slashing: not the ids of the output"
    assert len(ids) < 4 * convert(r.completion_tokens, uint256), "slashing: no more tokens than ids"
    self._convict_one(PADDING, r, signature, session, r.offer_id, salt)


@external
def prove_running_total(
    a: ISlashing.Receipt,
    signature_a: Bytes[65],
    b: ISlashing.Receipt,
    signature_b: Bytes[65],
    session: ISlashing.Session,
    salt: bytes32,
):
    """@notice The total of `b` is not that of `a`, which it names as the one before, and its amount together."""
    assert receipts._is_next(a, b), "slashing: not one after the other"
    hash_a: bytes32 = receipts._hash(a)
    assert b.previous == hash_a, "slashing: not the one before"
    assert (
        convert(b.total, uint256) != unsafe_add(convert(a.total, uint256), convert(b.amount, uint256))
    ), "slashing: the total is right"
    self._require_session(b.session_id, session, b.offer_id)
    separator: bytes32 = signatures._domain_separator()
    digest_a: bytes32 = self._require_signed(separator, hash_a, a.provider, a.finished_at, signature_a)
    digest_b: bytes32 = self._require_signed(separator, receipts._hash(b), b.provider, b.finished_at, signature_b)
    evidence: bytes32 = keccak256(abi_encode(RUNNING_TOTAL, digest_a, digest_b))
    self._convict(
        RUNNING_TOTAL, evidence, b.provider, b.session_id, b.start, b.seq, session, b.offer_id, b.total, b.finished_at, salt
    )


@external
def prove_first_total(r: ISlashing.Receipt, signature: Bytes[65], session: ISlashing.Session, salt: bytes32):
    """@notice The total of a session's first receipt is not its amount. The same fault as a wrong running total."""
    assert r.seq == 0, "slashing: not the first"
    assert r.total != r.amount, "slashing: the total is right"
    self._convict_one(RUNNING_TOTAL, r, signature, session, r.offer_id, salt)


@external
def prove_broken_chain(
    a: ISlashing.Receipt,
    signature_a: Bytes[65],
    b: ISlashing.Receipt,
    signature_b: Bytes[65],
    session: ISlashing.Session,
    salt: bytes32,
):
    """@notice `b` has the place after `a` and names another one as the one before."""
    assert receipts._is_next(a, b), "slashing: not one after the other"
    hash_a: bytes32 = receipts._hash(a)
    assert b.previous != hash_a, "slashing: the chain holds"
    self._require_session(b.session_id, session, b.offer_id)
    separator: bytes32 = signatures._domain_separator()
    digest_a: bytes32 = self._require_signed(separator, hash_a, a.provider, a.finished_at, signature_a)
    digest_b: bytes32 = self._require_signed(separator, receipts._hash(b), b.provider, b.finished_at, signature_b)
    evidence: bytes32 = keccak256(abi_encode(BROKEN_CHAIN, digest_a, digest_b))
    self._convict(
        BROKEN_CHAIN, evidence, b.provider, b.session_id, b.start, b.seq, session, b.offer_id, b.total, b.finished_at, salt
    )


@external
def prove_first_link(r: ISlashing.Receipt, signature: Bytes[65], session: ISlashing.Session, salt: bytes32):
    """@notice A session's first receipt names one before. The same fault as a broken chain."""
    assert r.seq == 0, "slashing: not the first"
    assert r.previous != empty(bytes32), "slashing: the chain holds"
    self._convict_one(BROKEN_CHAIN, r, signature, session, r.offer_id, salt)


@external
def prove_wrong_offer(
    r: ISlashing.Receipt, signature: Bytes[65], session: ISlashing.Session, offer_id: bytes32, salt: bytes32
):
    """
    @notice The session was opened with another offer than the receipt names; or the one that both name is
        none of this provider's.
    @param offer_id The offer that the session was opened with.
    """
    if offer_id == r.offer_id:
        offer: IRegistry.Figures = staticcall IRegistry(_REGISTRY).figures_of(offer_id)
        assert offer.provider != r.provider, "slashing: the session's own offer"
    self._convict_one(WRONG_OFFER, r, signature, session, offer_id, salt)


@external
def prove_oversold(
    sold: DynArray[ISlashing.Receipt, MAX_RECEIPTS], signed: DynArray[Bytes[65], MAX_RECEIPTS], salt: bytes32
):
    """
    @notice More sessions were being answered at one instant than their offer has slots. A receipt serves in one
        such proof. Nobody is compensated: what each of them lost is no sum that the messages tell.
    @param sold One receipt more than the offer has slots, each of another session, in rising order of their
        sessions' ids.
    @param signed Their signatures, in the same order.
    """
    count: uint256 = len(sold)
    assert count > 1 and len(signed) == count, "slashing: not a signature for each"
    first: ISlashing.Receipt = sold[0]
    offer: IRegistry.Figures = self._offer_of(first)
    assert count == convert(offer.slots, uint256) + 1, "slashing: not one more than the slots"
    separator: bytes32 = signatures._domain_separator()
    digests: DynArray[bytes32, MAX_RECEIPTS] = []
    last: uint256 = 0
    accepted: uint64 = 0
    finished: uint64 = max_value(uint64)
    for i: uint256 in range(count, bound=MAX_RECEIPTS):
        r: ISlashing.Receipt = sold[i]
        assert r.provider == first.provider and r.offer_id == first.offer_id, "slashing: not of one offer"
        place: uint256 = convert(r.session_id, uint256)
        assert i == 0 or place > last, "slashing: sessions out of order"
        last = place
        accepted = max(accepted, r.accepted_at)
        finished = min(finished, r.finished_at)
        digests.append(self._require_signed(separator, receipts._hash(r), r.provider, r.finished_at, signed[i]))
        convictions._mark(OVERSOLD, convictions._name(r.provider, r.session_id, r.start), r.seq)
    assert accepted < finished, "slashing: not at one instant"
    packed: Bytes[32 * MAX_RECEIPTS + 64] = slice(abi_encode(digests), 64, 32 * count)
    evidence: bytes32 = keccak256(concat(convert(OVERSOLD, bytes32), packed))
    self._reveal(evidence, salt)
    self._punish(
        OVERSOLD, first.provider, first.session_id, first.start, first.seq, empty(bytes32), empty(address), 0, evidence
    )


@external
def prove_late(r: ISlashing.Receipt, signature: Bytes[65], session: ISlashing.Session, salt: bytes32):
    """@notice The first token came later than the offer's bound, by the provider's own clock."""
    offer: IRegistry.Figures = self._offer_of(r)
    assert offer.max_ttft_ms > 0, "slashing: the offer has no bound"
    assert r.completion_tokens > 0, "slashing: no token came"
    in_time: uint256 = convert(r.accepted_at, uint256) + convert(offer.max_ttft_ms, uint256)
    assert convert(r.first_token_at, uint256) > in_time, "slashing: in time"
    self._convict_one(LATE, r, signature, session, r.offer_id, salt)


# --- challenges ----------------------------------------------------------------------------------


@external
@payable
def open_challenge(accept: ISlashing.Accept, signature: Bytes[65], session: ISlashing.Session):
    """
    @notice Ask on chain for the receipt that an accept promised, from an hour to a day after it; each accept once.
        Until it is answered or resolved, what it may cost cannot be withdrawn from the stake.
    @param session What the session's id is the hash of, with the accept's offer.
    """
    assert msg.value == _BOND, "slashing: the value is not the bond"
    self._require_session(accept.session_id, session, accept.offer_id)
    accepted: uint256 = convert(accept.accepted_at, uint256) // 1000
    assert block.timestamp >= accepted + CHALLENGE_AFTER, "slashing: too early to challenge"
    assert block.timestamp <= accepted + CHALLENGE_UNTIL, "slashing: too late to challenge"
    id: bytes32 = signatures._digest(receipts._accept_hash(accept))
    assert self._challenges[id] == 0, "slashing: already challenged"
    assert len(signature) == 65, "slashing: not a signature"
    self._require_key(accept.provider, signatures._recover(id, signature), accepted)
    self._challenges[id] = convert(msg.sender, uint256) | (block.timestamp << 160)
    frozen: uint256 = self._penalty(NON_DELIVERY)
    log ISlashing.ChallengeOpened(
        id=id,
        provider=accept.provider,
        challenger=msg.sender,
        accept=accept,
        session=session,
        bond=_BOND,
        frozen=frozen,
    )
    extcall IStaking(_STAKING).freeze(accept.provider, frozen)


@external
def answer_challenge(r: ISlashing.Receipt, signature: Bytes[65], ids: Bytes[4 * MAX_IDS]):
    """
    @notice Give the receipt, within 15 minutes of the challenge. Anyone may; the bond goes to the provider's owner,
        so that nobody, and not the challenger either, can earn it by copying the answer from the pool.
    @param ids The answer's token ids, packed as big-endian uint32, where the receipt has their hash and they
        are at most 8,192; otherwise empty.
    """
    separator: bytes32 = signatures._domain_separator()
    id: bytes32 = receipts._digest(separator, receipts._accept_hash(receipts._accept_of(r)))
    word: uint256 = self._require_open(id)
    assert block.timestamp < self._opened_at(word) + ANSWER_WINDOW, "slashing: too late to answer"
    if r.output_hash != empty(bytes32) and convert(r.completion_tokens, uint256) <= MAX_IDS:
        assert keccak256(ids) == r.output_hash, "slashing: not the ids of the output"
    else:
        assert len(ids) == 0, "slashing: no ids are asked for"
    hash: bytes32 = receipts._hash(r)
    self._require_signed(separator, hash, r.provider, r.finished_at, signature)
    self._challenges[id] = word | CLOSED
    owner: address = staticcall IRegistry(_REGISTRY).owner_of(r.provider)
    credits._credit(assets.NATIVE, owner, _BOND)
    log ISlashing.ChallengeAnswered(id=id, provider=r.provider, receipt=hash, to=owner, bond=_BOND)
    extcall IStaking(_STAKING).unfreeze(r.provider, self._penalty(NON_DELIVERY))


@external
def resolve_challenge(accept: ISlashing.Accept, session: ISlashing.Session):
    """
    @notice Close a challenge that was not answered in time: the bond goes back to the challenger, which is the
        reporter, and stake is taken. Anyone may. Always works, also where nothing is staked any more.
    """
    id: bytes32 = signatures._digest(receipts._accept_hash(accept))
    word: uint256 = self._require_open(id)
    assert block.timestamp >= self._opened_at(word) + ANSWER_WINDOW, "slashing: it may still be answered"
    self._require_session(accept.session_id, session, accept.offer_id)
    self._challenges[id] = word | CLOSED
    challenger: address = convert(word & MASK_160, address)
    credits._credit(assets.NATIVE, challenger, _BOND)
    penalty: uint256 = self._penalty(NON_DELIVERY)
    extcall IStaking(_STAKING).unfreeze(accept.provider, penalty)
    slashed: uint256 = 0
    arrived: uint256 = 0
    slashed, arrived = self._slash(accept.provider, penalty)
    # No receipt tells what the session has paid; the seconds until the accept do, where a stream runs.
    paid: uint256 = self._paid(session, accept.offer_id, accept.start, 0, accept.accepted_at)
    to_challenger: uint256 = 0
    to_victim: uint256 = 0
    burned: uint256 = 0
    name: bytes32 = convictions._name(accept.provider, accept.session_id, accept.start)
    to_challenger, to_victim, burned = self._split(arrived, name, challenger, session.payer, paid)
    log ISlashing.ChallengeResolved(
        id=id,
        provider=accept.provider,
        challenger=challenger,
        victim=session.payer,
        slashed=slashed,
        to_challenger=to_challenger,
        to_victim=to_victim,
        burned=burned,
        bond=_BOND,
    )


# --- money ---------------------------------------------------------------------------------------


@external
def withdraw(token: address, account: address):
    """
    @notice Pay an account's credit out to it. Anyone may call, so that it needs no gas and no function for it.
    @param token The stake's asset; or zero, the native coin, for bonds.
    """
    credits._pay_out(token, account)


# --- views ---------------------------------------------------------------------------------------


@external
@view
def credit_of(token: address, account: address) -> uint256:
    """@return What `withdraw` would pay. The burner's waits like any other."""
    return credits._credits[token][account]


@external
@view
def committed_at(commitment: bytes32) -> uint256:
    """@return The block's number; 0: it was not committed, or is used up."""
    return self._commitments[commitment]


@external
@view
def is_proven(kind: uint256, provider: address, session_id: bytes32, start: uint40, seq: uint32) -> bool:
    """@return True where the fault, of kind 1 to 8, was proven of this receipt."""
    assert kind >= EQUIVOCATION and kind <= LATE, "slashing: no such kind"
    return convictions._is_proven(kind, convictions._name(provider, session_id, start), seq)


@external
@view
def compensated(provider: address, session_id: bytes32, start: uint40) -> uint256:
    """@return What the session's payer was given so far for all its faults."""
    return convictions._compensated(convictions._name(provider, session_id, start))


@external
@view
def challenge(id: bytes32) -> ISlashing.Challenge:
    """@param id The accept's digest."""
    word: uint256 = self._challenges[id]
    return ISlashing.Challenge(
        challenger=convert(word & MASK_160, address),
        opened_at=convert(self._opened_at(word), uint64),
        open=word != 0 and word & CLOSED == 0,
    )


@external
@view
def penalty(kind: uint256) -> uint256:
    """@return What a fault of kind 1 to 9 costs, where so much is staked."""
    assert kind >= EQUIVOCATION and kind <= NON_DELIVERY, "slashing: no such kind"
    return self._penalty(kind)


@external
@view
def receipt_digest(r: ISlashing.Receipt) -> bytes32:
    """@return What the provider's signer signs."""
    return signatures._digest(receipts._hash(r))


@external
@view
def accept_digest(accept: ISlashing.Accept) -> bytes32:
    """@return What the provider's signer signs, and the id of a challenge."""
    return signatures._digest(receipts._accept_hash(accept))


@external
@view
def domain_separator() -> bytes32:
    """@return EIP-712, for receipts and accepts."""
    return signatures._domain_separator()


@external
@view
def challenge_bond() -> uint256:
    """@return Wei."""
    return _BOND


@external
@view
def registry() -> address:
    """@return The contract that knows signers and offers."""
    return _REGISTRY


@external
@view
def staking() -> address:
    """@return The contract that holds the stake."""
    return _STAKING


# --- internal: messages --------------------------------------------------------------------------


@internal
@view
def _require_session(id: bytes32, session: ISlashing.Session, offer_id: bytes32):
    assert receipts._session_id(session, offer_id) == id, "slashing: not the session"


@internal
@view
def _require_signed(
    separator: bytes32, hash: bytes32, provider: address, finished_at: uint64, signature: Bytes[65]
) -> bytes32:
    """@return The receipt's digest; reverts unless the provider signed it, not in the future and not long ago."""
    finished: uint256 = unsafe_div(convert(finished_at, uint256), 1000)
    assert finished <= block.timestamp, "slashing: dated in the future, wait"
    assert unsafe_add(finished, EVIDENCE_WINDOW) >= block.timestamp, "slashing: the evidence has expired"
    digest: bytes32 = receipts._digest(separator, hash)
    assert len(signature) == 65, "slashing: not a signature"
    self._require_key(provider, signatures._recover(digest, signature), finished)
    return digest


@internal
@view
def _require_key(provider: address, key: address, timestamp: uint256):
    """@notice The key that signed must have been the provider's in that second."""
    assert key != empty(address), "slashing: not a signature"
    assert (
        staticcall IRegistry(_REGISTRY).was_signer(provider, key, convert(timestamp, uint64))
    ), "slashing: not signed by the provider"


@internal
@view
def _offer_of(r: ISlashing.Receipt) -> IRegistry.Figures:
    """@return The offer that the receipt names, which must be its provider's."""
    offer: IRegistry.Figures = staticcall IRegistry(_REGISTRY).figures_of(r.offer_id)
    assert offer.provider == r.provider, "slashing: not the provider's offer"
    return offer


@internal
def _reveal(evidence: bytes32, salt: bytes32):
    """@notice The caller must have committed to this evidence in a block before."""
    commitment: bytes32 = keccak256(abi_encode(msg.sender, salt, evidence))
    committed: uint256 = self._commitments[commitment]
    assert committed != 0, "slashing: not committed"
    assert block.number > committed, "slashing: committed in this block"
    self._commitments[commitment] = 0


# --- internal: verdicts --------------------------------------------------------------------------


@internal
def _convict_one(
    kind: uint256,
    r: ISlashing.Receipt,
    signature: Bytes[65],
    session: ISlashing.Session,
    offer_id: bytes32,
    salt: bytes32,
):
    """@notice The receipt alone shows the fault. `offer_id`: the one that the session was opened with."""
    self._require_session(r.session_id, session, offer_id)
    separator: bytes32 = signatures._domain_separator()
    digest: bytes32 = self._require_signed(separator, receipts._hash(r), r.provider, r.finished_at, signature)
    evidence: bytes32 = keccak256(abi_encode(kind, digest))
    self._convict(
        kind, evidence, r.provider, r.session_id, r.start, r.seq, session, offer_id, r.total, r.finished_at, salt
    )


@internal
def _convict(
    kind: uint256,
    evidence: bytes32,
    provider: address,
    session_id: bytes32,
    start: uint40,
    seq: uint32,
    session: ISlashing.Session,
    offer_id: bytes32,
    total: uint128,
    until: uint64,
    salt: bytes32,
):
    """@notice The receipt is at fault. What its session has paid is `total`, and the seconds until `until` (ms)."""
    self._reveal(evidence, salt)
    paid: uint256 = self._paid(session, offer_id, start, convert(total, uint256), until)
    name: bytes32 = convictions._name(provider, session_id, start)
    convictions._mark(kind, name, seq)
    self._punish(kind, provider, session_id, start, seq, name, session.payer, paid, evidence)


@internal
def _punish(
    kind: uint256,
    provider: address,
    session_id: bytes32,
    start: uint40,
    seq: uint32,
    name: bytes32,
    victim: address,
    paid: uint256,
    evidence: bytes32,
):
    """@notice Take what the fault costs, and share it out. The fault is marked already."""
    slashed: uint256 = 0
    arrived: uint256 = 0
    slashed, arrived = self._slash(provider, self._penalty(kind))
    # Otherwise who has lost its stake could have its other faults forgiven for nothing.
    assert slashed > 0, "slashing: nothing is staked"
    to_reporter: uint256 = 0
    to_victim: uint256 = 0
    burned: uint256 = 0
    to_reporter, to_victim, burned = self._split(arrived, name, msg.sender, victim, paid)
    log ISlashing.FaultProven(
        provider=provider,
        kind=kind,
        session_id=session_id,
        start=convert(start, uint256),
        seq=convert(seq, uint256),
        evidence=evidence,
        reporter=msg.sender,
        victim=victim,
        slashed=slashed,
        to_reporter=to_reporter,
        to_victim=to_victim,
        burned=burned,
    )


@internal
@view
def _paid(
    session: ISlashing.Session, offer_id: bytes32, start: uint40, total: uint256, until: uint64
) -> uint256:
    """
    @return What the session has paid until then (ms), as far as the provider's own messages say; 0 where that is
        not the stake's asset, since nobody is asked what one is worth in the other.
    """
    if session.token != _ASSET:
        return 0
    paid: uint256 = total
    seconds: uint256 = unsafe_div(convert(until, uint256), 1000)
    first: uint256 = convert(start, uint256)
    if first > 0 and seconds > first:
        offer: IRegistry.Figures = staticcall IRegistry(_REGISTRY).figures_of(offer_id)
        paid += convert(offer.rate, uint256) * (seconds - first) // RATE_SCALE
    return paid


@internal
@view
def _penalty(kind: uint256) -> uint256:
    return _COVER // MINOR_PART if kind >= LATE else _COVER


@internal
def _slash(provider: address, amount: uint256) -> (uint256, uint256):
    """@return What was taken, and what arrived: less where the asset takes a fee."""
    if _ASSET == assets.NATIVE:
        taken: uint256 = extcall IStaking(_STAKING).slash(provider, amount, self)
        return taken, taken
    before: uint256 = assets._start_measuring(_ASSET)
    slashed: uint256 = extcall IStaking(_STAKING).slash(provider, amount, self)
    return slashed, assets._stop_measuring(_ASSET, before)


@internal
def _split(
    arrived: uint256, name: bytes32, reporter: address, victim: address, paid: uint256
) -> (uint256, uint256, uint256):
    """@return What the reporter and the victim are credited with, and what is burned."""
    # Stakes are below 2**128, and the parts are of a hundred.
    to_reporter: uint256 = unsafe_div(unsafe_mul(arrived, REPORTER_PERCENT), 100)
    to_victim: uint256 = 0
    if paid > 0:
        most: uint256 = unsafe_div(unsafe_mul(arrived, VICTIM_PERCENT), 100)
        to_victim = convictions._compensate(name, paid, most)
    burned: uint256 = unsafe_sub(unsafe_sub(arrived, to_reporter), to_victim)
    credits._credit(_ASSET, reporter, to_reporter)
    credits._credit(_ASSET, victim, to_victim)
    credits._credit(_ASSET, BURNED, burned)
    return to_reporter, to_victim, burned


# --- internal: challenges ------------------------------------------------------------------------


@internal
@view
def _require_open(id: bytes32) -> uint256:
    """@return The challenge's word."""
    word: uint256 = self._challenges[id]
    assert word != 0, "slashing: no such challenge"
    assert word & CLOSED == 0, "slashing: the challenge is closed"
    return word


@internal
@pure
def _opened_at(word: uint256) -> uint256:
    return (word >> 160) & MASK_40
