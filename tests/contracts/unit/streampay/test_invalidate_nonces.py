"""StreamPay.invalidate_nonces"""

import pytest

from tests.contracts.harness import MAX, Actor
from tests.fastchain import Contract


def test_burns_the_nonces_of_the_mask(pay: Contract, payer: Actor) -> None:
    receipt = pay.invalidate_nonces(3, 0b1010, sender=payer)
    assert receipt.log("NoncesInvalidated") == {"account": payer, "word": 3, "mask": 0b1010}
    assert [pay.is_nonce_used(payer, 3 * 256 + bit) for bit in range(5)] == [False, True, False, True, False]
    assert not any(pay.is_nonce_used(payer, bit) for bit in range(5))


def test_burns_no_ones_but_the_callers(pay: Contract, payer: Actor, attacker: Actor) -> None:
    pay.invalidate_nonces(0, MAX, sender=attacker)
    assert pay.is_nonce_used(attacker, 7) is True
    assert pay.is_nonce_used(payer, 7) is False


def test_never_gives_a_nonce_back(pay: Contract, payer: Actor) -> None:
    pay.invalidate_nonces(0, 0b11, sender=payer)
    for mask in (0, 0b1, 0b100):
        pay.invalidate_nonces(0, mask, sender=payer)
    assert [pay.is_nonce_used(payer, bit) for bit in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("word", [0, 1, MAX >> 8])
def test_burns_a_whole_word(pay: Contract, payer: Actor, word: int) -> None:
    pay.invalidate_nonces(word, MAX, sender=payer)
    assert pay.is_nonce_used(payer, word * 256)
    assert pay.is_nonce_used(payer, word * 256 + 255)
    assert not pay.is_nonce_used(payer, (word * 256 + 256) % 2**256)
