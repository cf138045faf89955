"""The router without its world: queues, batches, votes and decisions, in asyncio; the service and the simulator run it."""
