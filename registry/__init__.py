"""Discovery, catalogue, evidence and the run ledger."""
