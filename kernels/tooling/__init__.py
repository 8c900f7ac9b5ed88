"""How to be right without a GPU: interpreter fixes, memory traps, an offline driver, the laws every op obeys."""
