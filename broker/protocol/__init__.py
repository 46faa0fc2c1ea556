"""What both ends of the wire agree on.  Pure, and imports nothing of the rest: client and verifier stand on it too."""
