"""Ops with a plain-torch reference, fast implementations and one contract each."""
