"""A first service account: what a careful rule for one workload is, and its file's text, tests included.  Pure.

Stands on presets and on what the compiler makes of `where`.  Called by the command line, which reads tokens, asks the compiler
about the text, and writes it.  pick.py: claims -> what the rule looks at; cases.py: its tests; text.py: the YAML.
example.py: a first test for rules that are there.
"""

from broker.analysis.draft.example import first_case
from broker.analysis.draft.pick import Picked, pick
from broker.analysis.draft.text import Choices, clean, human_name, inline, release_pattern, scalar, write

__all__ = ["Choices", "Picked", "clean", "first_case", "human_name", "inline", "pick", "release_pattern", "scalar", "write"]
