"""`penstock chat`: a conversation on the terminal, its cost in sight."""
