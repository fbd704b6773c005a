"""A `solc` for Ape on machines that cannot download one: npm's `soljson.js` inside V8 (mini-racer).

The compiler is the official build, byte for byte; only its host differs. It answers what ape-solidity
asks: `--version`, and `--standard-json [--base-path DIR]` on standard input.
"""

import json
import os
import re
import sys
from pathlib import Path

SOLJSON = Path(__file__).resolve().parent.parent / ".toolchain" / "npm" / "solc" / "soljson.js"
MISSING = re.compile(r'Source "([^"]+)" not found')
# What emscripten's loader expects of its host.
HOST = "var console={log(){},warn(){},error(){}}; var performance={now(){return 0}}; var self=globalThis;"


def main(words: list[str]) -> int:
    from py_mini_racer import MiniRacer

    engine = MiniRacer()
    engine.eval(HOST)
    engine.eval(SOLJSON.read_text())
    if "--version" in words:
        version = engine.eval("Module.cwrap('solidity_version','string',[])()")
        print("solc, the solidity compiler commandline interface")
        print(f"Version: {str(version).replace('Emscripten.clang', 'Linux.g++')}")
        return 0
    if "--standard-json" not in words:
        print("solc: only --version and --standard-json are supported here", file=sys.stderr)
        return 1
    engine.eval("var compile=Module.cwrap('solidity_compile','string',['string','number','number'])")
    base = Path(words[words.index("--base-path") + 1]) if "--base-path" in words else Path.cwd()
    job = json.load(sys.stdin)
    while True:  # solc names the imports it lacks: give it those and ask again
        answer = engine.call("compile", json.dumps(job), 0, 0)
        lacking = {
            name
            for error in json.loads(answer).get("errors", ())
            for name in MISSING.findall(error.get("message", ""))
            if name not in job["sources"] and (base / name).is_file()
        }
        if not lacking:
            sys.stdout.write(answer)
            return 0
        for name in lacking:
            job["sources"][name] = {"content": (base / name).read_text()}


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # mini-racer can hang in the interpreter's shutdown
