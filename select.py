"""Select a subset: python select.py scorer=opt-350m dataset=alpaca selection=lp_app pct=10

Python's standard library has a module of this name, and imports this file in its place wherever this folder comes
first on the path. Then this file steps aside and loads the real one.
"""

import os.path
import sys

here = os.path.dirname(os.path.abspath(__file__))
elsewhere = [p for p in sys.path if os.path.abspath(p) != here]
without_lpsel = [p for p in elsewhere if not os.path.isdir(os.path.join(p, "lpsel"))]  # another checkout has this file

if __name__ == "select":
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("select", without_lpsel)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["select"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["select"])
elif __name__ == "__main__":
    sys.path[:] = [*elsewhere, here]

    from lpsel.cli import entry_point

    entry_point(__file__)
