"""One ledger from several: what other routers have in flight, exchanged through the store by a thread of its own."""
