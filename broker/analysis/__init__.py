"""Looking at policies without deciding: why this was refused, and what would change it.  Stands on policy and model."""
