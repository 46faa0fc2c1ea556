"""What the broker signs with: one ring an env, in the store, sealed; the same for every node."""
