# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title License
@license MIT
@notice Products of Penstock's publishers, and the licences to use them. Whoever pays holds a token that cannot
    move; gateways ask `is_valid`. Of each price 2.5 %, rounded down, are the treasury's and the rest the sellers'.

    What holds, and `docs/spec.md` numbers with the test of each:
    - every price is shared to the last unit, through the whole tree of a composite;
    - while a buyer may have its money back, the whole price lies in StreamPay for it;
    - no licence is ever shortened, but by a refund, or by a revocation that its product admits;
    - usage is what the licensee's key signed, never falls, and never exceeds what was bought;
    - a licence never moves; no exit depends on anybody else; the treasury only receives.
@dev Holds no money: what waits here is this contract's balance in StreamPay's vault, which it pays out of by its
    rules alone. It calls the catalogue's views and, last, StreamPay: what it credits to others nobody can refuse.
"""

from .interfaces import ICatalogue
from .interfaces import ILicense
from .interfaces import IStreamPay
from .modules import licences
from .modules import pages
from .modules import signatures
from .modules import soulbound

implements: ILicense

initializes: pages
initializes: licences[pages := pages]
initializes: signatures
initializes: soulbound[pages := pages, licences := licences]

exports: (
    soulbound.name,
    soulbound.symbol,
    soulbound.balanceOf,
    soulbound.ownerOf,
    soulbound.locked,
    soulbound.getApproved,
    soulbound.isApprovedForAll,
    soulbound.transferFrom,
    soulbound.safeTransferFrom,
    soulbound.approve,
    soulbound.setApprovalForAll,
    soulbound.supportsInterface,
)


interface Vault:
    def pay(payer: address, token: address, payments: DynArray[IStreamPay.Payment, MAX_PAYMENTS]): payable


MAX_TICKETS: constant(uint256) = 100
MAX_QUANTITY: constant(uint256) = 2**32 - 1
MAX_PRICE: constant(uint256) = 2**85 - 1  # the catalogue's
MAX_PAYMENTS: constant(uint256) = 32
BPS: constant(uint256) = 10_000
TREASURY_BPS: constant(uint256) = 250  # of each price, rounded down
TICKET_TYPE: constant(bytes32) = keccak256("Ticket(uint256 license,uint256 used)")

_STREAM_PAY: immutable(address)
_CATALOGUE: immutable(address)
_treasury: address
_pending_treasury: address
_ratings: HashMap[uint256, ILicense.Rating]  # by product


@deploy
def __init__(stream_pay: address, catalogue: address, treasury: address):
    """
    @param stream_pay The vault that payments go through.
    @param catalogue Where the products are.
    @param treasury Who receives 2.5 % of each price.
    """
    assert stream_pay.is_contract, "license: no StreamPay there"
    assert catalogue.is_contract, "license: no catalogue there"
    assert treasury != empty(address), "license: zero treasury"
    signatures.__init__("Penstock License", "1")
    _STREAM_PAY = stream_pay
    _CATALOGUE = catalogue
    self._treasury = treasury
    log ILicense.TreasuryTransferred(previous=empty(address), treasury=treasury)


# --- licences ------------------------------------------------------------------------------------


@external
@payable
def buy(
    product: uint256,
    release: uint256,
    tier: ICatalogue.Tier,
    quantity: uint256,
    max_cost: uint256,
    licensee: address,
    session_key: address,
) -> uint256:
    """
    @notice Buy a licence for `licensee`. The price comes from the value sent, then the caller's vault
        balance, then (ERC-20) its allowance to StreamPay, as far as the caller let this contract spend there.
    @param release The current release, whose terms the buyer has read.
    @param quantity Periods or packs; else 1.
    @param max_cost The most that it may cost.
    @param session_key Signs tickets; zero: the licensee itself.
    @return The licence's number.
    """
    figures: ICatalogue.Figures = self._figures_of(product)
    assert figures.active, "license: not for sale"
    assert release == figures.releases, "license: not the current release"
    assert licensee != empty(address), "license: zero licensee"
    cost: uint256 = self._cost(figures, convert(tier, uint256), quantity, max_cost)
    held: uint256 = self._extended(licences._pack(licences.NEVER, 0, 0, cost), figures, quantity, block.timestamp)
    status: uint256 = licences.COMPLETED
    until: uint256 = 0
    if figures.refund_window > 0:
        status = licences.PENDING
        until = block.timestamp + figures.refund_window
    id: uint256 = licences._mint(
        licensee, product, release, convert(tier, uint256), status, held, session_key
    )
    if until > 0:
        licences._pending[id] = convert(msg.sender, uint256) | (until << 160)
    soulbound._tell_minted(id, licensee)
    log ILicense.Licensed(
        license=id,
        product=product,
        licensee=licensee,
        payer=msg.sender,
        release=release,
        tier=tier,
        cost=cost,
        expires_at=licences._expires_at(held),
        bought=licences._bought(held),
        session_key=session_key,
        refundable_until=until,
    )
    if until > 0:
        self._charge(figures.token, cost, [IStreamPay.Payment(account=self, amount=cost)], msg.value)
    else:
        self._charge(figures.token, cost, self._split(product, figures, cost), msg.value)
    return id


@external
@payable
def renew(license: uint256, quantity: uint256, max_cost: uint256):
    """@notice Add periods or packs to a completed licence, at the price of its tier. Anyone may pay, as for `buy`."""
    word: uint256 = self._require_completed(license)
    product: uint256 = licences._product(word)
    figures: ICatalogue.Figures = self._figures_of(product)
    assert figures.active, "license: not for sale"
    assert self._is_counted(figures), "license: nothing to renew"
    cost: uint256 = self._cost(figures, licences._tier(word), quantity, max_cost)
    self._add(license, product, figures, quantity, cost, msg.sender)
    self._charge(figures.token, cost, self._split(product, figures, cost), msg.value)


@external
@payable
def upgrade(license: uint256, tier: ICatalogue.Tier, max_cost: uint256):
    """@notice Move a completed licence to a higher tier, for the difference in price of what is left. Licensee only."""
    word: uint256 = self._require_licensee(license)
    self._require_completed(license)
    product: uint256 = licences._product(word)
    figures: ICatalogue.Figures = self._figures_of(product)
    assert figures.active, "license: not for sale"
    cost: uint256 = self._upgrade_cost(license, figures, licences._tier(word), convert(tier, uint256))
    assert cost <= max_cost, "license: dearer than the bound"
    licences._words[license] = licences._with_tier(word, convert(tier, uint256))
    licences._figures[license] = licences._with_paid(licences._figures[license], cost)
    log ILicense.Upgraded(license=license, product=product, tier=tier, cost=cost)
    self._charge(figures.token, cost, self._split(product, figures, cost), msg.value)


@external
def complete(license: uint256):
    """@notice Pay a pending licence's price to the sellers: the payer at any time, anyone after the window."""
    word: uint256 = self._require_pending(license)
    pending: uint256 = licences._pending[license]
    assert (
        block.timestamp > pending >> 160 or convert(msg.sender, uint256) == pending & licences.MASK_160
    ), "license: still refundable"
    product: uint256 = licences._product(word)
    self._complete(license, product, self._figures_of(product))


@external
def refund(license: uint256):
    """@notice End a pending licence and give its price back: the payer within the window, the publisher at any time."""
    word: uint256 = self._require_pending(license)
    product: uint256 = licences._product(word)
    pending: uint256 = licences._pending[license]
    payer: address = convert(pending & licences.MASK_160, address)
    figures: ICatalogue.Figures = self._figures_of(product)
    if msg.sender != figures.publisher:
        assert msg.sender == payer, "license: not the payer"
        assert block.timestamp <= pending >> 160, "license: refund window is over"
    paid: uint256 = self._give_back(license, word, licences.REFUNDED)
    log ILicense.Refunded(license=license, product=product, payer=payer, amount=paid)
    self._pay_out(figures.token, [IStreamPay.Payment(account=payer, amount=paid)])


@external
def revoke(license: uint256, reason: String[200]):
    """@notice End a licence of a revocable product; where it is pending its price goes back. Publisher only."""
    word: uint256 = self._require_in_force(license)
    product: uint256 = licences._product(word)
    figures: ICatalogue.Figures = self._figures_of(product)
    assert msg.sender == figures.publisher, "license: not the publisher"
    assert figures.revocable, "license: not revocable"
    if licences._status(word) == licences.PENDING:
        payer: address = convert(licences._pending[license] & licences.MASK_160, address)
        paid: uint256 = self._give_back(license, word, licences.REVOKED)
        log ILicense.Revoked(license=license, product=product, refund=paid, reason=reason)
        self._pay_out(figures.token, [IStreamPay.Payment(account=payer, amount=paid)])
    else:
        licences._words[license] = licences._with_status(word, licences.REVOKED)
        log ILicense.Revoked(license=license, product=product, refund=0, reason=reason)


@external
def set_session_key(license: uint256, session_key: address):
    """@notice Have another key sign tickets; what the earlier one signed counts for a day more. Licensee only."""
    word: uint256 = self._require_licensee(license)
    until: uint256 = licences._set_key(license, licences._licensee(word), session_key)
    log ILicense.SessionKeyChanged(license=license, session_key=session_key, previous_until=until)


@external
def record_usage(tickets: DynArray[ILicense.Ticket, MAX_TICKETS]) -> uint256:
    """
    @notice Record what tickets say was used. Anyone may call; those that add nothing are passed over. A
        pending licence is completed. Packs are bought where a ticket needs them and the licensee let it.
    @return Units added in all.
    """
    total: uint256 = 0
    for ticket: ILicense.Ticket in tickets:
        total += self._record(ticket.license, ticket.used, ticket.signature)
    assert total > 0, "license: nothing to record"
    return total


@external
@payable
def set_auto_charge(license: uint256, packs: uint256, max_price: uint256, budget: uint256):
    """
    @notice Let tickets buy `packs` at a time at no more than `max_price` each, out of a budget. What the budget
        lacks is paid as for `buy`, what it has too much goes to the licensee's vault balance. Licensee only.
    """
    word: uint256 = self._require_licensee(license)
    figures: ICatalogue.Figures = self._figures_of(licences._product(word))
    assert figures.kind == ICatalogue.Kind.USAGE, "license: not sold by usage"
    assert packs <= MAX_QUANTITY, "license: not a quantity"
    assert max_price <= MAX_PRICE, "license: price too large"
    assert budget <= licences.MASK_128, "license: cost too large"
    held: uint256 = licences._autos[license] & licences.MASK_128
    self._set_auto(license, budget, packs, max_price)
    if budget > held:
        assert licences._in_force(word), "license: not in force"
        more: uint256 = budget - held
        self._charge(figures.token, more, [IStreamPay.Payment(account=self, amount=more)], msg.value)
    else:
        assert msg.value == 0, "license: value sent for nothing"
        if held > budget:
            self._pay_out(figures.token, [IStreamPay.Payment(account=msg.sender, amount=held - budget)])


@external
def review(license: uint256, stars: uint256, uri: String[200], hash: bytes32):
    """@notice Give 1 to 5 stars, once for each completed licence, weighted by what was paid. Licensee only."""
    word: uint256 = self._require_licensee(license)
    self._require_completed(license)
    assert word & licences.REVIEWED == 0, "license: already reviewed"
    assert 0 < stars and stars <= 5, "license: not 1 to 5 stars"
    product: uint256 = licences._product(word)
    weight: uint256 = licences._paid(licences._figures[license])
    licences._words[license] = word | licences.REVIEWED
    rating: ILicense.Rating = self._ratings[product]
    self._ratings[product] = ILicense.Rating(
        count=rating.count + 1, weight=rating.weight + weight, sum=rating.sum + stars * weight
    )
    log ILicense.Reviewed(license=license, product=product, stars=stars, weight=weight, uri=uri, hash=hash)


# --- treasury ------------------------------------------------------------------------------------


@external
def transfer_treasury(to: address):
    """@notice Offer to another account to receive the 2.5 % from now on; it must accept. Treasury only."""
    assert msg.sender == self._treasury, "license: not the treasury"
    self._pending_treasury = to
    log ILicense.TreasuryTransferStarted(treasury=msg.sender, pending_treasury=to)


@external
def accept_treasury():
    """@notice Take over what was offered to the caller."""
    assert msg.sender == self._pending_treasury, "license: not the pending treasury"
    previous: address = self._treasury
    self._treasury = msg.sender
    self._pending_treasury = empty(address)
    log ILicense.TreasuryTransferred(previous=previous, treasury=msg.sender)


# --- views ---------------------------------------------------------------------------------------


@external
@view
def rating(product: uint256) -> ILicense.Rating:
    """@return All zero where there is no review."""
    return self._ratings[product]


@external
@view
def upgrade_cost(license: uint256, tier: ICatalogue.Tier) -> uint256:
    """@return What `upgrade` takes now."""
    word: uint256 = self._require_completed(license)
    figures: ICatalogue.Figures = self._figures_of(licences._product(word))
    return self._upgrade_cost(license, figures, licences._tier(word), convert(tier, uint256))


@external
@view
def licence(license: uint256) -> ILicense.Licence:
    """@return All zero where there is no such licence."""
    return licences._get(license)


@external
@view
def licences_of(licensee: address, start: uint256, limit: uint256) -> DynArray[uint256, 100]:
    """@notice A page of an account's licences, whatever their status, oldest first; at most 100."""
    return pages._page(licences._holder_key(licensee), start, limit)


@external
@view
def tokenURI(token_id: uint256) -> String[200]:
    """@return ERC-721 metadata: the docs_uri of the release that was bought."""
    word: uint256 = licences._words[token_id]
    assert word != 0, "license: no such licence"
    return staticcall ICatalogue(_CATALOGUE).docs_uri_of(licences._product(word), licences._release(word))


@external
@view
def is_valid(license: uint256) -> bool:
    """@return True where it may be used now: neither refunded nor revoked, and something remains."""
    return licences._remaining(license) > 0


@external
@view
def remaining(license: uint256) -> uint256:
    """@return Seconds of a subscription, units of usage (the budget not counted), else the maximum; 0 where invalid."""
    return licences._remaining(license)


@external
@view
def auto_charge(license: uint256) -> ILicense.AutoCharge:
    """@return All zero where nothing was set aside."""
    word: uint256 = licences._autos[license]
    return ILicense.AutoCharge(
        budget=convert(word & licences.MASK_128, uint128),
        packs=convert((word >> 128) & licences.MASK_32, uint32),
        max_price=word >> 160,
    )


@external
@view
def total_supply() -> uint256:
    """@return How many licences were ever sold."""
    return licences._count


@external
@view
def domain_separator() -> bytes32:
    """@return Of tickets."""
    return signatures._domain_separator()


@external
@view
def treasury() -> address:
    """@return Who receives 2.5 % of each price."""
    return self._treasury


@external
@view
def pending_treasury() -> address:
    """@return Zero: no transfer is under way."""
    return self._pending_treasury


@external
@view
def stream_pay() -> address:
    """@return The vault that payments go through."""
    return _STREAM_PAY


@external
@view
def catalogue() -> address:
    """@return Where the products are."""
    return _CATALOGUE


# --- internal ------------------------------------------------------------------------------------


@internal
@view
def _require_licensee(license: uint256) -> uint256:
    """@return The licence's word."""
    word: uint256 = licences._words[license]
    assert msg.sender == licences._licensee(word), "license: not the licensee"
    return word


@internal
@view
def _require_completed(license: uint256) -> uint256:
    """@return The licence's word."""
    word: uint256 = licences._words[license]
    assert licences._status(word) == licences.COMPLETED, "license: not completed"
    return word


@internal
@view
def _require_pending(license: uint256) -> uint256:
    """@return The licence's word."""
    word: uint256 = licences._words[license]
    assert licences._status(word) == licences.PENDING, "license: not pending"
    return word


@internal
@view
def _require_in_force(license: uint256) -> uint256:
    """@return The licence's word."""
    word: uint256 = licences._words[license]
    assert licences._in_force(word), "license: not in force"
    return word


@internal
@view
def _figures_of(product: uint256) -> ICatalogue.Figures:
    return staticcall ICatalogue(_CATALOGUE).figures_of(product)


@internal
@view
def _is_counted(figures: ICatalogue.Figures) -> bool:
    """@return True where it is sold by periods or packs, of which more can be had."""
    return figures.kind == ICatalogue.Kind.SUBSCRIPTION or figures.kind == ICatalogue.Kind.USAGE


@internal
@view
def _price(figures: ICatalogue.Figures, tier: uint256) -> uint256:
    """@return Of one period or pack, or of all."""
    assert tier == 1 or tier == 2 or tier == 4, "license: not one tier"
    price: uint256 = figures.prices[tier >> 1]
    assert price > 0 or figures.kind == ICatalogue.Kind.FREE, "license: not sold in this tier"
    return price


@internal
@view
def _cost(figures: ICatalogue.Figures, tier: uint256, quantity: uint256, max_cost: uint256) -> uint256:
    most: uint256 = MAX_QUANTITY if self._is_counted(figures) else 1
    assert quantity > 0 and quantity <= most, "license: not a quantity"
    cost: uint256 = self._price(figures, tier) * quantity
    assert cost <= max_cost, "license: dearer than the bound"
    assert cost <= licences.MAX_PAID, "license: cost too large"
    return cost


@internal
@view
def _extended(held: uint256, figures: ICatalogue.Figures, quantity: uint256, since: uint256) -> uint256:
    """@return A licence's figures with so many periods, from `since`, or packs more."""
    expires_at: uint256 = licences._expires_at(held)
    bought: uint256 = licences._bought(held)
    if figures.kind == ICatalogue.Kind.SUBSCRIPTION:
        expires_at = since + quantity * figures.unit
        assert expires_at < licences.NEVER, "license: too long"
    elif figures.kind == ICatalogue.Kind.USAGE:
        bought += quantity * figures.unit
        assert bought <= licences.MAX_UNITS, "license: too many units"
    return licences._pack(expires_at, bought, licences._used(held), licences._paid(held))


@internal
def _add(
    license: uint256, product: uint256, figures: ICatalogue.Figures, quantity: uint256, cost: uint256, payer: address
):
    """@notice Add periods or packs, and say so."""
    held: uint256 = licences._figures[license]
    since: uint256 = max(licences._expires_at(held), block.timestamp)
    held = licences._with_paid(self._extended(held, figures, quantity, since), cost)
    licences._figures[license] = held
    log ILicense.Renewed(
        license=license,
        product=product,
        payer=payer,
        cost=cost,
        expires_at=licences._expires_at(held),
        bought=licences._bought(held),
    )


@internal
@view
def _upgrade_cost(license: uint256, figures: ICatalogue.Figures, old: uint256, tier: uint256) -> uint256:
    """@return The difference in price of what is left of the licence, rounded up."""
    assert tier > old, "license: not a higher tier"
    price: uint256 = self._price(figures, tier)
    more: uint256 = price - min(price, figures.prices[old >> 1])
    if not self._is_counted(figures):
        return more
    return (more * licences._remaining(license) + figures.unit - 1) // figures.unit


@internal
@view
def _split(
    product: uint256, figures: ICatalogue.Figures, cost: uint256
) -> DynArray[IStreamPay.Payment, MAX_PAYMENTS]:
    """@notice Who gets what of a price: the sum is the price."""
    payments: DynArray[IStreamPay.Payment, MAX_PAYMENTS] = []
    fee: uint256 = cost * TREASURY_BPS // BPS
    if fee > 0:
        payments.append(IStreamPay.Payment(account=self._treasury, amount=fee))
    if figures.depth == 0:
        payments.append(IStreamPay.Payment(account=figures.publisher, amount=cost - fee))
        return payments
    for share: ICatalogue.Share in staticcall ICatalogue(_CATALOGUE).shares_of(product, cost - fee):
        payments.append(IStreamPay.Payment(account=share.publisher, amount=share.amount))
    return payments


@internal
def _complete(license: uint256, product: uint256, figures: ICatalogue.Figures):
    paid: uint256 = licences._paid(licences._figures[license])
    licences._words[license] = licences._with_status(licences._words[license], licences.COMPLETED)
    licences._pending[license] = 0
    log ILicense.Completed(license=license, product=product, cost=paid)
    self._pay_out(figures.token, self._split(product, figures, paid))


@internal
def _give_back(license: uint256, word: uint256, status: uint256) -> uint256:
    """@notice End a pending licence. @return What its payer is to have back."""
    figures: uint256 = licences._figures[license]
    licences._words[license] = licences._with_status(word, status)
    licences._figures[license] = figures & (2**152 - 1)
    licences._pending[license] = 0
    return licences._paid(figures)


@internal
def _record(license: uint256, used: uint256, signature: Bytes[65]) -> uint256:
    """@return Units added; 0 where the ticket is an old one."""
    word: uint256 = self._require_in_force(license)
    product: uint256 = licences._product(word)
    figures: ICatalogue.Figures = self._figures_of(product)
    assert figures.kind == ICatalogue.Kind.USAGE, "license: not sold by usage"
    before: uint256 = licences._used(licences._figures[license])
    if used <= before:
        return 0
    assert len(signature) == 65, "license: ticket signature is not 65 bytes"
    key: address = signatures._recover(
        signatures._digest(keccak256(abi_encode(TICKET_TYPE, license, used))), signature
    )
    assert key != empty(address) and licences._may_sign(
        license, licences._licensee(word), key
    ), "license: ticket not signed by the session key"
    if licences._status(word) == licences.PENDING:
        self._complete(license, product, figures)
    bought: uint256 = licences._bought(licences._figures[license])
    if used > bought:
        self._buy_packs(license, product, figures, licences._tier(word), used - bought)
    licences._figures[license] += (used - before) << 96
    log ILicense.UsageRecorded(license=license, product=product, used=used)
    return used - before


@internal
def _buy_packs(
    license: uint256, product: uint256, figures: ICatalogue.Figures, tier: uint256, lacking: uint256
):
    """@notice Buy the packs that a ticket lacks, as many steps as it takes, out of the budget."""
    auto: uint256 = licences._autos[license]
    budget: uint256 = auto & licences.MASK_128
    packs: uint256 = (auto >> 128) & licences.MASK_32
    max_price: uint256 = auto >> 160
    price: uint256 = figures.prices[tier >> 1]
    assert (
        figures.active and packs > 0 and 0 < price and price <= max_price
    ), "license: more than was bought"
    quantity: uint256 = ((lacking - 1) // (packs * figures.unit) + 1) * packs
    assert quantity <= budget // price, "license: more than was bought"
    cost: uint256 = price * quantity
    self._add(license, product, figures, quantity, cost, empty(address))
    self._set_auto(license, budget - cost, packs, max_price)
    self._pay_out(figures.token, self._split(product, figures, cost))


@internal
def _set_auto(license: uint256, budget: uint256, packs: uint256, max_price: uint256):
    licences._autos[license] = budget | (packs << 128) | (max_price << 160)
    log ILicense.AutoChargeChanged(license=license, budget=budget, packs=packs, max_price=max_price)


@internal
def _charge(token: address, cost: uint256, payments: DynArray[IStreamPay.Payment, MAX_PAYMENTS], coins: uint256):
    """@notice Have the caller pay, with the coins that came with the call first."""
    if cost == 0:
        assert coins == 0, "license: value sent for nothing"
    else:
        extcall Vault(_STREAM_PAY).pay(msg.sender, token, payments, value=coins)


@internal
def _pay_out(token: address, payments: DynArray[IStreamPay.Payment, MAX_PAYMENTS]):
    """@notice Pay out of what waits here."""
    extcall Vault(_STREAM_PAY).pay(self, token, payments)
