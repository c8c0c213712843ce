"""Compare models: python evaluate.py evaluator=reference model=[RUN_OR_MODEL,RUN_OR_MODEL]"""

import os.path
import sys

if __name__ == "__main__":
    # This folder holds select.py and evaluate.py, which must not stand in for the modules of those names.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != here] + [here]

    from lpsel.cli import entry_point

    entry_point(__file__)
