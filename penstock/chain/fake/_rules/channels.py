"""StreamPay.vy's channels."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.chain.fake._rules.transaction import UINT256, Refused, require
from penstock.chain.fake._rules.vault import VaultRules
from penstock.channels import CLOSE_DELAY, MAX_DEPOSIT, ChannelState
from penstock.errors import BadSignature
from penstock.events import ChannelClosed, ChannelCloseRequested, ChannelOpened, ChannelSettled, ChannelToppedUp
from penstock.types import ZERO_ADDRESS, Address, ChannelOrder, Permit, StreamKey, Voucher
from penstock.wire.eip712 import channel_order_digest, recover, voucher_digest


class ChannelRules(VaultRules):
    def open(self, key: StreamKey, deposit: int, from_vault: int) -> None:
        self.tx.require_fits((deposit, UINT256), (from_vault, UINT256))
        require(key.payee != ZERO_ADDRESS, "channels: zero payee")
        require(key.payee != key.payer, "channels: payer is the payee")
        require(key.session_key != ZERO_ADDRESS, "channels: zero session key")
        require(deposit > 0, "channels: zero deposit")
        require(deposit <= MAX_DEPOSIT, "channels: deposit too large")
        require(key.id not in self.state.channels, "channels: already used")
        self.state.channels[key.id] = ChannelState(deposit, 0, 0, False)
        spent, lacking = self._spend(key.token, key.payer, deposit, from_vault)
        self.tx.log(ChannelOpened, key.id, key, deposit, spent)
        if lacking:
            self._pull(key.token, key.payer, lacking)

    def open_for(self, order: ChannelOrder, signature: bytes, permit: Permit) -> None:
        self.tx.require_order(order.deadline)
        digest = channel_order_digest(self.tx.contracts.stream_pay_domain, order)
        self.tx.require_signed(order.key.payer, digest, signature)
        self.tx.use_nonce(order.key.payer, order.nonce)
        self.use_permit(order.key.token, order.key.payer, permit)
        self.open(order.key, order.deposit, order.from_vault)

    def top_up(self, key: StreamKey, amount: int, from_vault: int) -> None:
        self.tx.require_fits((amount, UINT256), (from_vault, UINT256))
        channel = self._channel(key)
        require(amount > 0, "channels: zero amount")
        require(amount <= MAX_DEPOSIT - channel.deposit, "channels: deposit too large")
        self.state.channels[key.id] = channel.topped_up(amount)
        spent, lacking = self._spend(key.token, self.tx.sender, amount, from_vault)
        self.tx.log(ChannelToppedUp, key.id, self.tx.sender, amount, spent)
        if lacking:
            self._pull(key.token, self.tx.sender, lacking)

    def settle(self, vouchers: Sequence[Voucher]) -> None:
        """All of one payee and token."""
        total = sum(self._settle_one(voucher) for voucher in vouchers)
        require(total > 0, "channels: nothing to settle")
        key = vouchers[0].key
        self.credit_earnings(key.token, key.payee, total)

    def _settle_one(self, voucher: Voucher) -> int:
        name = voucher.key.id
        channel = self.state.channels.get(name)
        if channel is None:
            require(voucher.cumulative == 0, "channels: voucher above the deposit")
            return 0
        added = channel.added_by(voucher.cumulative)
        if added:
            require(voucher.cumulative <= channel.deposit, "channels: voucher above the deposit")
            self._require_voucher(voucher)
            self.state.channels[name] = channel.settled_to(voucher.cumulative)
            self.tx.log(ChannelSettled, name, voucher.cumulative)
        return added

    def close(self, voucher: Voucher) -> None:
        channel = self._channel(voucher.key)
        added = channel.added_by(voucher.cumulative)
        if added:
            require(voucher.cumulative <= channel.deposit, "channels: voucher above the deposit")
            self._require_voucher(voucher)
            self.credit(voucher.key.token, voucher.key.payee, added)
        self._finish(voucher.key, channel.settled_to(voucher.cumulative), ZERO_ADDRESS)

    def request_close(self, key: StreamKey) -> None:
        channel = self._channel(key)
        require(channel.requested_at == 0, "channels: already requested")
        self.state.channels[key.id] = channel.requested(self.now)
        self.tx.log(ChannelCloseRequested, key.id, self.now + CLOSE_DELAY)

    def reclaim(self, key: StreamKey, to: Address) -> None:
        channel = self._channel(key)
        require(channel.requested_at != 0, "channels: close not requested")
        require(self.now >= channel.requested_at + CLOSE_DELAY, "channels: too early")
        self._finish(key, channel, to)

    def _finish(self, key: StreamKey, channel: ChannelState, to: Address) -> None:
        refund = channel.locked
        self.state.channels[key.id] = channel.closed()
        self.tx.log(ChannelClosed, key.id, channel.settled, refund, to)
        self.give_back(key, refund, to)

    def _channel(self, key: StreamKey) -> ChannelState:
        channel = self.state.channels.get(key.id)
        if channel is None:
            raise Refused("channels: no such channel")
        require(not channel.finished, "channels: finished")
        return channel

    def _require_voucher(self, voucher: Voucher) -> None:
        require(len(voucher.signature) == 65, "channels: voucher signature is not 65 bytes")
        digest = voucher_digest(self.tx.contracts.stream_pay_domain, voucher.key.id, voucher.cumulative)
        try:
            signer = recover(digest, voucher.signature)
        except BadSignature:
            signer = ZERO_ADDRESS
        require(signer == voucher.key.session_key, "channels: voucher not signed by the session key")
