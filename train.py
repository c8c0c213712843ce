"""Train a target model on a selected subset: python train.py model=opt-13b selection=lp_app pct=10"""

import os.path
import sys

if __name__ == "__main__":
    # A checkout's select.py and evaluate.py must not stand in for the modules of those names: this folder goes last,
    # and the checkout that is installed, if it is another one, leaves the path.
    sys.path[:] = [p for p in sys.path if not os.path.isfile(os.path.join(p, "select.py"))]
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))

    from lpsel.cli import entry_point

    entry_point(__file__)
