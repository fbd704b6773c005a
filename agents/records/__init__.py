"""What was asked, of whom it was bought, why of them, and what it cost: durable before the client has its answer."""
