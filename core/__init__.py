"""The torch-free heart: slots, configs, manifests, stacks and plans."""
