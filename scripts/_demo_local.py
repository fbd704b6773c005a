"""`make demo`, `make slash-demo`, `make skill-demo`: a local chain like BSC (1 s blocks, 0.05 gwei), and the Ape script
of that name on it. Nothing is left running.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

GAS_PRICE = 50_000_000  # wei: what BSC asks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, node: subprocess.Popen[bytes], seconds: float = 20) -> None:
    request = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}'
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and node.poll() is None:
        try:
            urllib.request.urlopen(  # our own node on the loopback interface
                urllib.request.Request(url, request, {"Content-Type": "application/json"}), timeout=2
            ).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"demo: anvil did not answer at {url}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", choices=("demo", "slash_demo", "skill_demo"))
    parser.add_argument("options", nargs="*", help="for the script")
    words = parser.parse_args()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` runs
    anvil = ["anvil", "--port", str(port), "--chain-id", "31337", "--block-time", "1", "--silent"]
    anvil += ["--base-fee", "0", "--gas-price", str(GAS_PRICE), "--order", "fifo"]
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder:
        node = subprocess.Popen(anvil)
        try:
            wait_for(url, node)
            deployment = Path(folder) / "31337.json"
            env = os.environ | {"APE_FOUNDRY_HOST": url, "PENSTOCK_DEPLOYMENT": str(deployment)}
            command = ["ape", "run", words.script, "--network", "bsc:local:foundry", *words.options]
            return subprocess.call(command, env=env)
        except KeyboardInterrupt:
            return 130
        finally:
            node.terminate()
            node.wait(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
