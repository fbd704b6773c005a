"""What computes the answers: any server that speaks OpenAI's protocol, found by URL or started here."""

from provider.engines._base import Dialect, Engine, EngineFailed, headers
from provider.engines.fleet import Fleet

__all__ = ["Dialect", "Engine", "EngineFailed", "Fleet", "headers"]
