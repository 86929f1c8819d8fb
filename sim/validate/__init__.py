"""``kvsim validate``: runs of a real engine, replayed and compared."""
