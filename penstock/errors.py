"""What can go wrong, as types. Each message names the cause and what to do about it.

PenstockError
├── ConfigError             a setting, key or deployment file is missing or wrong
│   ├── WrongChain          the node is on another chain than the deployment
│   └── JournalDamaged      the journal of streams cannot be read
├── ChainError              the chain said no, or did not answer
│   ├── NodeUnavailable     no answer, or not the answer of a node
│   ├── NoContract          no code where a contract should be
│   ├── Reverted            a contract refused, with its reason
│   ├── TransactionLost     sent, and not mined before the deadline
│   ├── InsufficientFunds   the account cannot pay the amount or the gas
│   ├── CapExceeded         a cap on what may be spent forbids it
│   └── StreamLeftOpen      a stream could not be stopped, and money is locked in it
├── NotFound                no such provider, offer or stream
├── NoOffer                 nothing on the market fits what was asked
│   └── PriceTooHigh        something fits, but costs more than the limit
├── OfferMismatch           payee, token or rate differ from the registered offer
├── WireError               a message is malformed
│   ├── BadSignature        signed by another key, or not at all
│   └── Expired             a grant, token or order is past its time
└── GatewayError            a provider's gateway
    ├── GatewayUnreachable  nothing answers at the endpoint
    ├── GatewayGarbage      something answers, but not this protocol
    ├── GatewayRefused      it answered with an error of its own
    │   └── PaymentRequired HTTP 402, with its quote
    ├── ReceiptRefused      it signed a receipt that does not match its answer
    ├── Overcharged         it counts more tokens, or wants more paid, than can be true
    ├── AnswerCut           the answer ended before it was complete
    └── AllFailed           every provider that fits was asked, and none answered
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PenstockError(Exception):
    """Base of all. `exit_code` is what a command line exits with."""

    exit_code = 1


class ConfigError(PenstockError):
    exit_code = 2


class WrongChain(ConfigError):
    pass


class JournalDamaged(ConfigError):
    pass


class ChainError(PenstockError):
    exit_code = 3


class NodeUnavailable(ChainError):
    pass


class NoContract(ChainError):
    pass


class Reverted(ChainError):
    """`reason` is the contract's own, such as "streams: already ended"."""

    def __init__(self, reason: str, *, doing: str = "") -> None:
        self.reason = reason
        cure = _CURES.get(reason, "")
        super().__init__((f"{doing}: " if doing else "") + f"the contract refused: {reason}" + (cure and f"; {cure}"))


_CURES = {
    "vault: not allowed so much": "another purchase took part of what License may take of the payer; try again, which "
    "allows it anew",
    "license: not completed": "its price still waits in its refund window: `penstock skill complete` waives what is "
    "left of that, or buy another",
    "license: key changed within a day": "what the key before it signed still counts; try again a day after that",
    "wallet: too few coins": "put more in with `penstock wallet fund`",
    "wallet: too few tokens": "put more in with `penstock wallet fund`",
    "wallet: paused": "its owner ends that with `penstock wallet unpause`",
    "wallet: no such key, or it has expired": "its owner lets a key spend with `penstock wallet keys --add`",
    "wallet: outside the key's scope": "its owner widens that with `penstock wallet keys --add KEY --scope all`",
    "wallet: payee not on the list": "its owner adds it with `penstock wallet allow --payee`",
    "wallet: offer not on the list": "its owner adds it with `penstock wallet allow --offer`",
    "wallet: not its licence": "name a licence that the wallet holds: `penstock skill stats --bought`",
}
"""By a contract's reason, what to do about it."""


class TransactionLost(ChainError):
    """`transaction` may still be mined later."""

    def __init__(self, transaction: str, message: str) -> None:
        self.transaction = transaction
        super().__init__(message)


class InsufficientFunds(ChainError):
    pass


class CapExceeded(ChainError):
    """`cap` is "payment", "hour", "day" or "week"; `contract`: whether a contract refused, or only this software."""

    def __init__(self, cap: str, message: str, *, contract: bool) -> None:
        self.cap, self.contract = cap, contract
        super().__init__(message)


class StreamLeftOpen(ChainError):
    """At most `locked` base units of the stream's token stay locked, until `until` (Unix seconds) at the latest."""

    def __init__(self, stream: str, message: str, *, locked: int, until: int) -> None:
        self.stream, self.locked, self.until = stream, locked, until
        super().__init__(message)


class NotFound(PenstockError):
    exit_code = 4


class NoOffer(PenstockError):
    exit_code = 4


class PriceTooHigh(NoOffer):
    pass


class OfferMismatch(PenstockError):
    exit_code = 4


class WireError(PenstockError):
    exit_code = 5


class BadSignature(WireError):
    pass


class Expired(WireError):
    pass


class GatewayError(PenstockError):
    exit_code = 6


class GatewayUnreachable(GatewayError):
    pass


class GatewayGarbage(GatewayError):
    pass


class GatewayRefused(GatewayError):
    """`status` is HTTP's; `code` is the gateway's own, such as "session_expired"."""

    def __init__(self, status: int, code: str, message: str, body: dict[str, Any] | None = None) -> None:
        self.status, self.code, self.body = status, code, body or {}
        super().__init__(message)


class PaymentRequired(GatewayRefused):
    pass


class ReceiptRefused(GatewayError):
    """`what` names the receipt's field that does not match, or "signature"."""

    def __init__(self, what: str, message: str) -> None:
        self.what = what
        super().__init__(message)


class Overcharged(GatewayError):
    pass


class AnswerCut(GatewayError):
    """`code` says why, such as "stream_ended"."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class AllFailed(GatewayError):
    """`failures` says why, by provider."""

    def __init__(self, message: str, failures: Mapping[str, PenstockError]) -> None:
        self.failures = failures
        super().__init__(message)
