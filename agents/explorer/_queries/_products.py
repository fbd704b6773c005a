"""Products and licences."""

from __future__ import annotations

import json

from sqlalchemy import Connection, select

from agents.explorer import _schema as schema
from agents.explorer._queries._rows import PAGE, Page, Row, contains, fetch_one, paged


def products(
    connection: Connection,
    *,
    search: str = "",
    publisher: str = "",
    active: bool | None = True,
    after: str | None = None,
    limit: int = PAGE,
) -> Page:
    query = select(schema.products)
    if search:
        query = query.where(contains(schema.products.c.name, search))
    if publisher:
        query = query.where(schema.products.c.publisher == publisher)
    if active is not None:
        query = query.where(schema.products.c.active.is_(active))
    page = paged(connection, query, schema.products.c.id, after, limit)
    return Page([_product(row) for row in page.rows], page.next)


def product(connection: Connection, id: int) -> Row | None:
    row = fetch_one(connection, select(schema.products).where(schema.products.c.id == id))
    return row and _product(row)


def _product(row: Row) -> Row:
    """With its version and parts to be read, and the mean of its reviews, by what each reviewer paid."""
    version = row["version"]
    return {
        **row,
        "version": f"{version >> 64}.{version >> 32 & 0xFFFFFFFF}.{version & 0xFFFFFFFF}",
        "parts": json.loads(row["parts"]),
        "rating": row["stars"] / row["weight"] if row["weight"] else None,
    }


def licences(
    connection: Connection,
    *,
    licensee: str = "",
    product: int | None = None,
    after: str | None = None,
    limit: int = PAGE,
) -> Page:
    table = schema.licences
    query = select(table, schema.products.c.name, schema.products.c.token, schema.products.c.kind).join(
        schema.products, schema.products.c.id == table.c.product
    )
    if licensee:
        query = query.where(table.c.licensee == licensee)
    if product is not None:
        query = query.where(table.c.product == product)
    return paged(connection, query, table.c.id, after, limit)
