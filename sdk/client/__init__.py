"""Models behind OpenAI-compatible servers, as `core.generation.ChatModel`."""
