"""Models behind OpenAI-compatible servers, as `plugins.reasoner.streaming_model.StreamingModel`."""
