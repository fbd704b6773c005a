# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Catalogue
@license MIT
@notice What Penstock's publishers offer for licence. There is no admin: a product's records are changed by its
    publisher alone, what it is by nobody.

    What holds, each with its test:
    - a product's number never names another product, publisher, kind, token or tree of parts;
    - a release never changes, and versions only rise;
    - a tree has no cycle, at most 4 levels and 31 products, and shares an amount to the last unit.
@dev Moves no money, and calls nobody.
"""

from .interfaces import ICatalogue
from .modules import pages
from .modules import products

implements: ICatalogue

initializes: pages
initializes: products[pages := pages]


# --- products ------------------------------------------------------------------------------------


@external
def publish(listing: ICatalogue.Listing, prices: uint256[3], release: ICatalogue.Release) -> uint256:
    """@return The product's number. It is for sale, and the caller's."""
    return products._publish(msg.sender, listing, prices, release)


@external
def add_release(product: uint256, release: ICatalogue.Release):
    """@notice Publish a later version. Licences that were sold keep the terms of theirs. Publisher only."""
    self._require_publisher(product)
    products._add_release(product, release)


@external
def set_prices(product: uint256, prices: uint256[3]):
    """@notice Change what is asked from now on. Publisher only."""
    products._set_prices(product, products._kind(self._require_publisher(product)), prices)


@external
def set_product_active(product: uint256, active: bool):
    """@notice Take a product off the market, or put it back; licences that were sold stay. Publisher only."""
    self._require_publisher(product)
    products._set_active(product, active)


# --- views ---------------------------------------------------------------------------------------


@external
@view
def product(product: uint256) -> ICatalogue.Product:
    """@return All zero where there is no such product."""
    return products._get(product)


@external
@view
def release(product: uint256, number: uint256) -> ICatalogue.Release:
    """@return All zero where there is no such release; they are numbered from 1."""
    return products._releases[product][number]


@external
@view
def product_count() -> uint256:
    """@return How many were ever published."""
    return products._count


@external
@view
def products_of(publisher: address, start: uint256, limit: uint256) -> DynArray[uint256, 100]:
    """@notice A page of a publisher's products, oldest first; at most 100."""
    return pages._page(products._publisher_key(publisher), start, limit)


@external
@view
def products_in(category: ICatalogue.Category, start: uint256, limit: uint256) -> DynArray[uint256, 100]:
    """@notice A page of a category's products, inactive ones included, oldest first; at most 100."""
    return pages._page(products._category_key(convert(category, uint256)), start, limit)


@external
@view
def docs_uri_of(product: uint256, number: uint256) -> String[200]:
    """@return Of a release; empty where there is none."""
    return products._releases[product][number].docs_uri


@external
@view
def figures_of(product: uint256) -> ICatalogue.Figures:
    """@notice Without the strings, for contracts. All zero where there is no such product."""
    return products._figures(product)


@external
@view
def shares_of(product: uint256, amount: uint256) -> DynArray[ICatalogue.Share, products.MAX_NODES]:
    """
    @notice Who gets what of an amount that the product earns. Each part has its share, rounded down, of what
        its composite has; what is left is the composite's publisher's. The sum is the amount.
    """
    assert products._heads[product] != 0, "catalogue: no such product"
    return products._shares(product, amount)


@external
@view
def cost_of(product: uint256, tier: ICatalogue.Tier, quantity: uint256) -> uint256:
    """@return What a licence takes now, or so many periods or packs more; reverts where that is not for sale."""
    return products._cost(product, convert(tier, uint256), quantity)


# --- internal ------------------------------------------------------------------------------------


@internal
@view
def _require_publisher(product: uint256) -> uint256:
    """@return The product's head."""
    head: uint256 = products._heads[product]
    assert msg.sender == products._publisher(head), "catalogue: not the publisher"
    return head
