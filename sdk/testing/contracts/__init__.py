"""One contract class per slot."""
