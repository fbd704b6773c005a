"""The chain port over JSON-RPC.

    chain = await Web3Chain.connect("http://127.0.0.1:8545", deployments.load(31337))
    try:
        offers = await chain.offers()
    finally:
        await chain.close()

Many reads travel in one HTTP batch. A transaction is tried by `eth_call` first, which gives the contract's reason
where it refuses and costs nothing; then it is sent with a legacy gas price, which every EVM chain takes and BSC
prefers, and awaited.
"""

from __future__ import annotations

from typing import Any, Self

from eth_utils.crypto import keccak

from penstock.chain._rpc import JsonRpc, RpcError
from penstock.chain.web3._channels import Channels
from penstock.chain.web3._licences import Licences
from penstock.chain.web3._registry import Registry
from penstock.chain.web3._slashing import Slashing
from penstock.chain.web3._staking import Staking
from penstock.chain.web3._streams import Streams
from penstock.chain.web3._wallets import Wallets
from penstock.deployments import Deployment
from penstock.errors import NoContract, NodeUnavailable, WrongChain
from penstock.types import hex32, unhex


class Web3Chain(Registry, Staking, Slashing, Streams, Channels, Licences, Wallets):
    """One chain with one deployment on it, over one node. Make it with `connect`; it is for one event loop."""

    @classmethod
    async def connect(
        cls, rpc_url: str, deployment: Deployment, *, request_timeout: float = 15.0, receipt_timeout: float = 60.0
    ) -> Self:
        """Check that the node is on the deployment's chain and has its contracts. `rpc_url` may name several, with
        commas between: where one fails the next is asked.

        `request_timeout` bounds one request, `receipt_timeout` the wait for a transaction, in seconds. NodeUnavailable,
        WrongChain or NoContract say what is amiss.
        """
        rpc = JsonRpc(rpc_url, timeout=request_timeout)
        try:
            names = sorted(deployment.contracts)
            codes: list[Any]
            chain_id, *codes = await rpc.batch(
                [
                    ("eth_chainId", ()),
                    *(("eth_getCode", (deployment.contracts[name].address, "latest")) for name in names),
                ]
            )
            for answer in (chain_id, *codes):
                if isinstance(answer, RpcError):
                    raise NodeUnavailable(f"{rpc.shown}: {answer}")
            if int(chain_id, 16) != deployment.chain_id:
                raise WrongChain(
                    f"{rpc.shown} is on chain {int(chain_id, 16)}, the deployment on chain {deployment.chain_id}: "
                    "give the --network, --rpc-url and --deployment that belong together"
                )
            for name, code in zip(names, codes, strict=True):
                contract = deployment.contracts[name]
                if code == "0x":
                    raise NoContract(
                        f"there is no contract at {contract.address}, where {name} should be: deploy it "
                        "(`ape run deploy`), or name the right deployment file"
                    )
                if hex32(keccak(unhex(code))) != contract.code_hash:
                    raise NoContract(
                        f"the contract at {contract.address} is not the {name} that was deployed: "
                        "the deployment file is of another chain or run, deploy again or name the right file"
                    )
        except BaseException:
            await rpc.close()
            raise
        rpc.expect(deployment.chain_id)
        return cls(rpc, deployment, receipt_timeout=receipt_timeout)

    async def close(self) -> None:
        await self._rpc.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
