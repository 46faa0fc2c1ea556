"""Cutting off: what this node knows of the revocation chains, and how it catches up."""
