"""Domains that a model writes: a sheet of data, rules that run in the sandbox alone, and a bounded repair loop."""
