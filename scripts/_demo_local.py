"""`make demo`, `make slash-demo`, `make skill-demo`: a local chain like BSC (1 s blocks, 0.05 gwei), and the Ape script
of that name on it. Nothing is left running; the chain is kept as it was at the end, for `make explore` to open the
explorer on.
"""

import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from scripts._ports import free_port

ROOT = Path(__file__).resolve().parent.parent
STATE, DEPLOYMENT = ROOT / ".build" / "demo" / "state.json", ROOT / ".build" / "demo" / "31337.json"
"""Where the last demonstration left its chain, and its contracts' addresses."""
GAS_PRICE = 50_000_000  # wei: what BSC asks


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


def keep(url: str) -> None:
    """Write the chain's state down, as anvil takes it with --load-state."""
    raw = bytes.fromhex(ask(url, "anvil_dumpState").removeprefix("0x"))
    STATE.parent.mkdir(parents=True, exist_ok=True)
    STATE.write_bytes(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    print("To see in a browser what happened: make explore", flush=True)


def ask(url: str, method: str) -> str:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": []}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:  # our own node on the loopback interface
        return str(json.load(response)["result"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", choices=("demo", "slash_demo", "skill_demo", "explore"))
    parser.add_argument("options", nargs="*", help="for the script")
    words = parser.parse_args()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` runs
    anvil = ["anvil", "--port", str(port), "--chain-id", "31337", "--block-time", "1", "--silent"]
    anvil += ["--base-fee", "0", "--gas-price", str(GAS_PRICE), "--order", "fifo"]
    if words.script == "explore":
        if not STATE.exists():
            raise SystemExit("explore: no demonstration has run here: `make demo` first, or `penstock explorer --demo`")
        anvil += ["--load-state", str(STATE)]
    node = subprocess.Popen(anvil, start_new_session=words.script == "explore")
    try:
        wait_for(url, node)
        if words.script == "explore":
            with tempfile.TemporaryDirectory(prefix="penstock-explore-") as home:
                env = os.environ | {"PENSTOCK_RPC_URL": url, "PENSTOCK_DEPLOYMENT": str(DEPLOYMENT)}
                return subprocess.call(["penstock", "explorer", "--home", home, *words.options], env=env)
        command = ["ape", "run", words.script, "--network", "bsc:local:foundry", "--deployment", str(DEPLOYMENT)]
        code = subprocess.call([*command, *words.options], env=os.environ | {"APE_FOUNDRY_HOST": url})
        if code == 0:
            keep(url)
        return code
    except KeyboardInterrupt:
        return 130
    finally:
        node.terminate()
        node.wait(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
