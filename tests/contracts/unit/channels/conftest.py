"""A channel that is open."""

import pytest

from tests.contracts.harness import Actor, Money, Terms
from tests.contracts.vouchers import open_channel
from tests.fastchain import Contract


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    terms = Terms(payer, payee, money.address)
    open_channel(pay, money, terms)
    return terms
