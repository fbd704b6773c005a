"""What goes between consumer and provider: signed messages, the session handshake, 402 bodies."""
