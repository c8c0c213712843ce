"""Select a subset: python select.py scorer=opt-350m dataset=alpaca selection=lp_app pct=10

Python's standard library has a module of this name, and imports this file in its place wherever this folder comes
first on the path. Then this file steps aside and loads the real one.
"""

import os.path
import sys

# Without this folder, and without another checkout of lpsel that is installed
elsewhere = [p for p in sys.path if not os.path.isfile(os.path.join(p, "select.py"))]

if __name__ == "select":
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("select", elsewhere)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["select"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["select"])
elif __name__ == "__main__":
    sys.path[:] = [*elsewhere, os.path.dirname(os.path.abspath(__file__))]

    from lpsel.cli import entry_point

    entry_point(__file__)
