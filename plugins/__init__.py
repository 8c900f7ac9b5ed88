"""First-party techniques, one folder each: plugins/<slot>/<technique>/."""
