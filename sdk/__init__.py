"""stackloom: compose agentic-model stacks from research plugins."""
