"""Plans on a virtual clock: the same batches, routing and ledger as the service, without machines. Pure."""
