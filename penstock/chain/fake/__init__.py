"""The chain port in memory, with the contracts' rules: for tests of what stands on the port, and for trying it out.

    chain = FakeChain()
    chain.set_balance(payer.address, 10**18)
    receipt = await chain.open(payer, key, rate=10**6, duration=60, value=60, from_vault=0)
    chain.advance(30)

Every transaction is mined at once in a block of its own. Time stands still unless a test moves it, or a clock is
given. Faults are switched on by `outage`, `lose_next` and `reorg`. One suite of tests runs against this and against
`Web3Chain` with the real contracts, so that the two cannot drift apart. Accounts are plain keys, or agent
wallets. `_rules` has what the contracts do, the files beside it what is asked of them.
"""

from __future__ import annotations

from penstock.chain.fake._channels import Channels
from penstock.chain.fake._licences import Licences
from penstock.chain.fake._node import COVER_PER_SLOT as COVER_PER_SLOT
from penstock.chain.fake._node import GAS as GAS
from penstock.chain.fake._node import GAS_PRICE as GAS_PRICE
from penstock.chain.fake._node import MINIMUM_STAKE as MINIMUM_STAKE
from penstock.chain.fake._node import START as START
from penstock.chain.fake._registry import Registry
from penstock.chain.fake._slashing import Slashing
from penstock.chain.fake._staking import Staking
from penstock.chain.fake._streams import Streams
from penstock.chain.fake._tokens import Tokens
from penstock.chain.fake._wallets import Wallets


class FakeChain(Registry, Staking, Slashing, Streams, Channels, Licences, Wallets, Tokens):
    """A chain with Penstock on it, in this process. See the top of this module."""
