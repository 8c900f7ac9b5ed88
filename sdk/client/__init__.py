"""Models behind OpenAI-compatible servers, as `core.generation.StreamingModel`."""
