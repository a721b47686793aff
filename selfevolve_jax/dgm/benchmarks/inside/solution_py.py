"""The untrusted side: imports the solution when it is asked to, and does what the tests ask of it.

It hides nothing from the solution, and need not: whatever the solution does to this process, the tests
run elsewhere and see only its answers.
"""

import importlib
import os
import sys

import join
import wire

sys.path.insert(0, sys.argv[1])
sys.setrecursionlimit(10_000)
end = wire.Wire(join.joined())
wire.OPERATIONS["import"] = importlib.import_module
try:
    while True:
        end.serve(end.receive())
except wire.Gone:
    os._exit(0)  # whatever threads the solution has left
