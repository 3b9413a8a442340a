"""fingerbench: who can prove that a neural network was stolen?

    import fingerbench as fb

    bench = fb.open("data=digits")
    bench.scores("ipguard")

See `fingerbench.bench` for more; `case`, `network` and `read_fingerprint` stand beside it. Nothing heavy is imported
until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fingerbench.bench import Bench, open
    from fingerbench.evaluate.case import case
    from fingerbench.fingerprints import read_fingerprint
    from fingerbench.nets import network

__version__ = "0.1.0"
__all__ = ["Bench", "case", "network", "open", "read_fingerprint"]

_HOMES = {
    "Bench": "fingerbench.bench",
    "open": "fingerbench.bench",
    "case": "fingerbench.evaluate.case",
    "network": "fingerbench.nets",
    "read_fingerprint": "fingerbench.fingerprints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fingerbench' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
