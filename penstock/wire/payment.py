"""The 402 body: an OpenAI-shaped error that also carries an x402 quote.

OpenAI clients read `error`; x402 clients read `accepts`, here and, base64 of the same JSON, in the
`PAYMENT-REQUIRED` header. The schemes are our own: `penstock-stream`, pay by opening a stream, and
`penstock-channel`, pay for tokens by vouchers on a channel. An offer that needs both has both in one quote.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from penstock.types import Address, Offer

SCHEME = "penstock-stream"
CHANNEL_SCHEME = "penstock-channel"
HEADER = "PAYMENT-REQUIRED"
X402_VERSION = 2


def quote(
    offer: Offer,
    *,
    payee: Address,
    stream_pay: Address,
    chain_id: int,
    endpoint: str,
    min_seconds: int,
    min_tokens: int,
    licence: int = 0,
) -> dict[str, Any]:
    """One way to pay, as x402 writes it. Amounts are decimal strings of base units. `licence`: the product of which the
    payer must hold a licence; 0: none."""
    terms = offer.terms
    amount = -(-terms.rate * min_seconds // 10**6)
    extra: dict[str, Any] = {
        "streamPay": stream_pay,
        "offerId": offer.id,
        "provider": offer.provider,
        "model": terms.model,
        "sessions": f"{endpoint}/v1/penstock/sessions",
    }
    if terms.by_second:
        extra |= {"rate": str(terms.rate), "rateUnit": "base units x 1e6 per second", "minSeconds": min_seconds}
    if terms.by_token:
        amount += terms.owed(0, min_tokens)
        extra |= {
            "promptPrice": str(terms.prompt_price),
            "completionPrice": str(terms.completion_price),
            "priceUnit": "base units per million tokens",
            "minTokens": min_tokens,
            "vouchers": f"{endpoint}/v1/penstock/sessions/voucher",
        }
    if licence:
        extra["licence"] = licence
    return {
        "scheme": SCHEME if terms.by_second else CHANNEL_SCHEME,
        "network": f"eip155:{chain_id}",
        "asset": terms.token,
        "amount": str(amount),
        "payTo": payee,
        "maxTimeoutSeconds": 300,
        "extra": extra,
    }


def body(code: str, message: str, resource: str, quotes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": "payment_required", "code": code, "param": None},
        "x402Version": X402_VERSION,
        "resource": {"url": resource, "description": "LLM inference, paid as it is used"},
        "accepts": quotes,
    }


def header(content: dict[str, Any]) -> str:
    return base64.b64encode(msgspec.json.encode(content)).decode()
