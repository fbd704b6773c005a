"""Tickets: a licensee's word for how many units of its licence it has used in all. License.vy takes them, too."""

from __future__ import annotations

import msgspec

from penstock.licences import LicenceId, Ticket
from penstock.types import hex32
from penstock.wire._fields import read_bytes, read_uint
from penstock.wire.eip712 import Domain, KeySigner, ticket_digest


def sign_ticket(domain: Domain, key: KeySigner, licence: LicenceId, used: int) -> Ticket:
    """`domain`: License's own."""
    return Ticket(licence, used, key.sign_digest(ticket_digest(domain, licence, used)))


class TicketBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    licence: int
    used: int
    signature: str

    @classmethod
    def of(cls, ticket: Ticket) -> TicketBody:
        return cls(ticket.licence, ticket.used, hex32(ticket.signature))

    def value(self) -> Ticket:
        """WireError where a field is out of its range."""
        return Ticket(
            LicenceId(read_uint(self.licence, 64, "licence")),
            read_uint(self.used, 64, "used"),
            read_bytes(self.signature, "signature", 65),
        )
