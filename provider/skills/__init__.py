"""Skills behind the gateway: who holds a licence, what it may still use, and how its calls are executed."""
