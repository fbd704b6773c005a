"""The chain as the SDK sees it: `port` says what, `web3` does it, `fake` plays it in memory."""
