"""What the contracts do, in memory: each one's rules as methods that change a copy of the chain's state, or refuse."""

from __future__ import annotations
