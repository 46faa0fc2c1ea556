"""HTTP at the edge: routes, limits, and the one table from errors to answers."""
