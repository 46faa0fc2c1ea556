"""What may they have: the policy tree, compiled; decisions over it, pure; the tree in force, kept alive.

Stands on model, presets, config and errors.  Called by exchange, admin, analysis and node; calls no neighbour.
"""
