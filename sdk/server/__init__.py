"""`stackloom serve`: an OpenAI-compatible server over the local engine."""
