"""Buys one answer after another from the market: discovers, chooses, opens, pays, fails over, closes.

async with Consumer(chain, account, journal) as consumer, Buyer(consumer, on_purchase=keep) as buyer:
    answer = await buyer.start(Job("/v1/chat/completions", {"messages": messages}, Wish.parse("auto")))
    async for chunk in answer.chunks():
        ...
"""

from agents.buyer._answer import Answer
from agents.buyer._buyer import Buyer
from agents.buyer._policy import Policy
from agents.buyer._types import Filters, Job, Model, PriceRange, Purchase, Wish
from agents.buyer.settings import ChoiceSettings

__all__ = ["Answer", "Buyer", "ChoiceSettings", "Filters", "Job", "Model", "Policy", "PriceRange", "Purchase", "Wish"]
