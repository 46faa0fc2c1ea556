"""What may they have: the compiled policy as values, and decisions over it.  Pure.

Stands on presets, model, config and errors.  Called by exchange, compiler and analysis; calls no neighbour.
"""
