"""From the folder to the tree in force: policy files read strictly, checked, compiled file by file, watched, swapped.

Stands on policy, presets, model, config and errors.  Called by node and cli.
"""
