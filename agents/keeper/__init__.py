"""The keeper: settles what others have earned where that pays, and keeps promised streams running.

    penstock keeper run --account my-keeper

A plain loop: follow StreamPay's events, decide what is worth doing (`_planner`, a pure function), do it, wait for
the next block. What it knows and what it sent is in one SQLite file, so that it can be killed at any instant.
"""
