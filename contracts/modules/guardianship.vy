# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Guardian: may pause new risk, and nothing else
@license MIT
@notice A pause stops opens and top-ups. Whatever lets money out (withdraw, collect, cancel, close)
    never asks this module. The role is handed over in two steps, or given up for ever.
@dev The deployable decides what `_require_running` guards.
"""

from ..interfaces import IStreamPay

_guardian: address
_paused: bool  # shares the guardian's slot
_pending_guardian: address


@deploy
def __init__(guardian: address):
    """@param guardian Zero: nobody can ever pause."""
    self._guardian = guardian
    log IStreamPay.GuardianTransferred(previous=empty(address), guardian=guardian)


@internal
@view
def _require_running():
    assert not self._paused, "guardian: paused, only exits are open"


@internal
def _set_paused(paused: bool):
    assert msg.sender == self._guardian, "guardian: not the guardian"
    self._paused = paused
    log IStreamPay.PauseChanged(paused=paused)


@internal
def _transfer(to: address):
    assert msg.sender == self._guardian, "guardian: not the guardian"
    self._pending_guardian = to
    log IStreamPay.GuardianTransferStarted(guardian=msg.sender, pending_guardian=to)


@internal
def _accept():
    assert msg.sender == self._pending_guardian, "guardian: not the pending guardian"
    previous: address = self._guardian
    self._guardian = msg.sender
    self._pending_guardian = empty(address)
    log IStreamPay.GuardianTransferred(previous=previous, guardian=msg.sender)


@internal
def _renounce():
    """@notice Give the role up for ever; a pause that is on ends, since nobody could end it later."""
    assert msg.sender == self._guardian, "guardian: not the guardian"
    self._guardian = empty(address)
    self._pending_guardian = empty(address)
    if self._paused:
        self._paused = False
        log IStreamPay.PauseChanged(paused=False)
    log IStreamPay.GuardianTransferred(previous=msg.sender, guardian=empty(address))
