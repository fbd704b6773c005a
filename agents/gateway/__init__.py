"""The local gateway: OpenAI's and Ollama's APIs on localhost, answered by the market or a local engine."""
